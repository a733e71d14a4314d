"""Finds the image of a damaged pin or freeze, so that it still protects that image. A *note* is the file of either.

    note that cannot be read
      ├── the text that is left names its image ─────────────────> that image
      ├── its file name is the hash of a tag or digest here ─────> that image
      └── neither: not known; nothing may be dropped

The search reads the names of all tags, and for a pin also those of all manifests. A note whose image was not found is
not searched for again for a minute.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Final

from mirror import telemetry
from mirror.errors import StoreError
from mirror.oci.digest import Digest
from mirror.policy.image_names import name_of
from mirror.policy.unread_notes import Subject, UnreadNote, note_name
from mirror.ports import Catalog

#: Seconds between two searches for the same notes.
_AGAIN: Final = 60.0


class DamagedNoteOwners:
    """Finds the images of notes that cannot be read. May be called from any thread."""

    def __init__(self, catalog: Catalog, now: Callable[[], float] = time.monotonic) -> None:
        self._catalog = catalog
        self._now = now
        self._lock = threading.Lock()
        self._owners: dict[UnreadNote, Subject] = {}
        self._missed_at: dict[UnreadNote, float] = {}

    def __repr__(self) -> str:
        return f"<DamagedNoteOwners found={len(self._owners)} missed={len(self._missed_at)}>"

    def find(self, notes: Collection[UnreadNote]) -> dict[UnreadNote, Subject]:
        """Blocking: returns the images of those notes whose image is known. Raises `StoreError` if the names of tags
        and manifests cannot be listed.
        """
        with self._lock:
            # notes that were repaired are forgotten
            self._owners = {note: self._owners[note] for note in notes if note in self._owners}
            self._missed_at = {note: self._missed_at[note] for note in notes if note in self._missed_at}
            for note in notes:
                if subject := note.subject:
                    self._owners[note] = subject
            if due := [note for note in notes if note not in self._owners and self._is_due(note)]:
                self._search(due)
            return dict(self._owners)

    def of(self, notes: Collection[UnreadNote]) -> dict[UnreadNote, Subject]:
        """Blocking: returns the images of all notes. Raises `StoreError` if one is not known; the error says what to
        do.
        """
        return require_all(notes, self.find(notes))

    def _is_due(self, note: UnreadNote) -> bool:
        return self._now() - self._missed_at.get(note, float("-inf")) >= _AGAIN

    def _search(self, notes: Iterable[UnreadNote]) -> None:
        wanted = {(note.kind, note.name): note for note in notes}
        for subject in self._subjects(any(note.kind == "pins" for note in notes)):
            name = note_name(f"{subject[0]} {subject[1]}")
            # a digest cannot be frozen
            for kind in ("pins",) if isinstance(subject[1], Digest) else ("pins", "freezes"):
                if note := wanted.pop((kind, name), None):
                    self._owners[note] = subject
            if not wanted:
                return
        self._missed_at |= dict.fromkeys(wanted.values(), self._now())

    def _subjects(self, with_digests: bool) -> Iterator[Subject]:
        """Yields the tags here and, if `with_digests`, the manifests. Tags come first: most notes are about one."""
        for repo in self._catalog.repositories():
            yield from ((repo, tag) for tag in self._catalog.tags(repo))
        for repo in self._catalog.repositories() if with_digests else ():
            yield from ((repo, digest) for digest in self._catalog.manifest_digests(repo))


def require_all(notes: Iterable[UnreadNote], owners: dict[UnreadNote, Subject]) -> dict[UnreadNote, Subject]:
    """Returns `owners`. Raises `StoreError` if it lacks the image of one of the notes; the error says what to do."""
    for note in notes:
        if note not in owners:
            raise StoreError(note.trouble)
    return owners


def unread_words(notes: Collection[UnreadNote], owners: Mapping[UnreadNote, Subject]) -> list[str]:
    """Returns one or two sentences about each note, for people, with what to do."""
    return [
        f"{note.file} cannot be read ({note.why}): {_describe(note, owners[note])}" if note in owners else note.trouble
        for note in notes
    ]


def _describe(note: UnreadNote, subject: Subject) -> str:
    name = name_of(*subject)
    if note.kind == "pins":
        return f"it is the pin of {name}, which stays; `mirror pin {name}` or `mirror unpin {name}` mends it"
    return (
        f"it is the freeze of {name}, and at what is not known: pulls of the tag are refused, its repository stays; "
        f"`mirror freeze {name} --at DIGEST` or `mirror unfreeze {name}` mends it"
    )


def log_unread(notes: Collection[UnreadNote], logged: set[UnreadNote], owners: Mapping[UnreadNote, Subject]) -> None:
    """Updates the metric, and logs each note that is not yet in `logged`. Then `logged` is set to `notes`, so that
    repaired notes are forgotten.
    """
    telemetry.UNREAD_NOTES.set(len(notes))
    new = [note for note in notes if note not in logged]
    for note, words in zip(new, unread_words(new, owners), strict=True):
        telemetry.log.error("pin or freeze cannot be read", file=note.file, reason=words)
    logged.clear()
    logged.update(notes)
