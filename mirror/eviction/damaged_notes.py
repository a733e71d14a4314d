"""What damaged pins and freezes were about, so that they protect as much as can be known.

    note that cannot be read
      ├── the text that is left names its image ───────────────────> that image
      ├── a tag or digest here has the hash that is its file's name ──> that image
      └── neither: not known; whoever would drop something must not

The search reads the names of all tags, and for a pin those of all manifests; what was not found is not looked for again
for a minute.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Final

from mirror import telemetry
from mirror.errors import StoreError
from mirror.oci.digest import Digest
from mirror.policy.image_names import name_of
from mirror.policy.unread import Subject, UnreadNote, note_name
from mirror.ports import Catalog

__all__ = ["DamagedNoteOwners", "all_known", "tell_unread", "unread_json", "unread_words"]

#: Seconds between two searches for the same notes.
_AGAIN: Final = 60.0


class DamagedNoteOwners:
    """Of unread notes. May be asked from any thread."""

    def __init__(self, catalog: Catalog, now: Callable[[], float] = time.monotonic) -> None:
        self._catalog = catalog
        self._now = now
        self._lock = threading.Lock()
        self._found: dict[UnreadNote, Subject] = {}
        self._missed: dict[UnreadNote, float] = {}

    def known(self, notes: Collection[UnreadNote]) -> dict[UnreadNote, Subject]:
        """Blocking: of those of which it can be told. Raises `StoreError` where the names here cannot be read."""
        with self._lock:
            # what was mended is forgotten
            self._found = {note: self._found[note] for note in notes if note in self._found}
            self._missed = {note: self._missed[note] for note in notes if note in self._missed}
            for note in notes:
                if subject := note.subject:
                    self._found[note] = subject
            left = [note for note in notes if note not in self._found and self._is_due(note)]
            if left:
                self._search(left)
            return dict(self._found)

    def of(self, notes: Collection[UnreadNote]) -> dict[UnreadNote, Subject]:
        """Blocking: of all of them. Raises `StoreError` where that of one is not known; it says what to do."""
        return all_known(notes, self.known(notes))

    def _is_due(self, note: UnreadNote) -> bool:
        return self._now() - self._missed.get(note, float("-inf")) >= _AGAIN

    def _search(self, notes: Iterable[UnreadNote]) -> None:
        wanted = {(note.kind, note.name): note for note in notes}
        for subject in self._names(any(note.kind == "pins" for note in notes)):
            name = note_name(f"{subject[0]} {subject[1]}")
            # a digest cannot be frozen
            for kind in ("pins",) if isinstance(subject[1], Digest) else ("pins", "freezes"):
                if note := wanted.pop((kind, name), None):
                    self._found[note] = subject
            if not wanted:
                return
        self._missed |= dict.fromkeys(wanted.values(), self._now())

    def _names(self, with_digests: bool) -> Iterator[Subject]:
        """Tags first: most notes are about one."""
        for repo in self._catalog.repositories():
            yield from ((repo, tag) for tag in self._catalog.tags(repo))
        for repo in self._catalog.repositories() if with_digests else ():
            yield from ((repo, digest) for digest in self._catalog.manifest_digests(repo))


def all_known(notes: Iterable[UnreadNote], known: dict[UnreadNote, Subject]) -> dict[UnreadNote, Subject]:
    """What is `known` of these notes. Raises `StoreError` where that of one is not; it says what to do."""
    for note in notes:
        if note not in known:
            raise StoreError(note.trouble)
    return known


def unread_words(notes: Collection[UnreadNote], known: Mapping[UnreadNote, Subject]) -> list[str]:
    """For people: a sentence or two on each, with what to do."""
    return [
        f"{note.file} cannot be read ({note.why}): {_it_is(note, known[note])}" if note in known else note.trouble
        for note in notes
    ]


def _it_is(note: UnreadNote, subject: Subject) -> str:
    name = name_of(*subject)
    if note.kind == "pins":
        return f"it is the pin of {name}, which stays; `mirror pin {name}` or `mirror unpin {name}` mends it"
    return (
        f"it is the freeze of {name}, and at what is not known: pulls of the tag are refused, its repository stays; "
        f"`mirror freeze {name} --at DIGEST` or `mirror unfreeze {name}` mends it"
    )


def unread_json(notes: Collection[UnreadNote], known: Mapping[UnreadNote, Subject]) -> list[dict[str, Any]]:
    """For programs; `message` is for people."""
    return [
        {
            "kind": note.kind,
            "image": name_of(*known[note]) if note in known else None,
            "file": note.file,
            "reason": note.why,
            "message": words,
        }
        for note, words in zip(notes, unread_words(notes, known), strict=True)
    ]


def tell_unread(notes: Collection[UnreadNote], told: set[UnreadNote], known: Mapping[UnreadNote, Subject]) -> None:
    """Count them, and log those that were not `told`, once each; those that were mended are forgotten."""
    telemetry.UNREAD_NOTES.set(len(notes))
    new = [note for note in notes if note not in told]
    for note, words in zip(new, unread_words(new, known), strict=True):
        telemetry.log.error("note.unreadable", file=note.file, reason=words)
    told.clear()
    told.update(notes)
