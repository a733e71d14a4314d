"""Which images are pinned, and which content stays for that. Read from the disk; the index has no say in it.

    pins on disk ─────┐
                      ├──> images ── tag record ──> digest ──> what its manifests name, present or not: it stays
    rules, over tags ─┘                                             │
    freezes on disk ──────────────────────────────────────> digest ─┘

A pin whose file is damaged holds as far as it is known what it was for. A damaged freeze keeps its whole repository,
for what it was at is not known. Where not even the image is known nothing may go (`unread.py`).

A pinned tag protects what it points to now, and what it answers now where that is another digest: because it is frozen,
or because the newest one is not old enough yet. A frozen tag protects what it answers, pinned or not. What is named but
absent counts too, so that a blob that comes later is safe from its first moment on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from mirror.errors import StoreError
from mirror.eviction.damaged_notes import DamagedNoteOwners, all_known, tell_unread
from mirror.graph.manifests import for_display
from mirror.graph.references import ReferenceReader
from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor
from mirror.oci.reference import Reference, Repo
from mirror.policy.image_names import name_of
from mirror.policy.pins import PinRule, rule_for
from mirror.policy.records import Freeze, Pin
from mirror.policy.unread import Subject, UnreadNote
from mirror.ports import Catalog, Pins

__all__ = ["PinnedContent", "PinnedImage", "images_of", "pinned_by_rules", "pinned_images", "shown_root", "why_pinned"]

#: Reads what an image points to; None: nothing here.
RootReader = Callable[[Catalog, Repo, Reference], Descriptor | None]


@dataclass(frozen=True, slots=True)
class PinnedImage:
    """An image that must stay, and why.

    `root` is what it points to now; None: that is not known here, because nobody pulled it yet. `since` and `until` are
    epoch seconds. `rule` is the pattern of the configuration that says it; None: it was pinned by hand. `unread`: the
    pin's file cannot be read, and this is what it was for; `reason` names the file.
    """

    repo: Repo
    reference: Reference
    root: Descriptor | None
    reason: str
    since: float | None = None
    until: float | None = None
    rule: str | None = None
    unread: bool = False


def pinned_images(
    pins: Pins, rules: Sequence[PinRule], catalog: Catalog, now: float, subjects: DamagedNoteOwners | None = None
) -> list[PinnedImage]:
    """Blocking, to be shown: every pin that is in force, those that cannot be read where it is known what they are for,
    then what rules add to them. A tag whose record cannot be read has no `root`. Raises `StoreError` for the rest.
    Callers that ask often pass `subjects`, which search less.
    """
    read, unread = pins.look()
    return images_of(read, (subjects or DamagedNoteOwners(catalog)).known(unread), rules, catalog, now, root=shown_root)


def images_of(
    pins: Iterable[Pin],
    unread: Mapping[UnreadNote, Subject],
    rules: Sequence[PinRule],
    catalog: Catalog,
    now: float,
    *,
    root: RootReader | None = None,
) -> list[PinnedImage]:
    """Blocking: the same of what was read. `root` reads what an image points to. Raises `StoreError`, also if it cannot
    be told what a pinned tag points to, unless `root` says otherwise.
    """
    root = root or _root
    found = [
        PinnedImage(pin.repo, pin.reference, root(catalog, pin.repo, pin.reference), pin.reason, pin.since, pin.until)
        for pin in pins
        if pin.holds(now)
    ]
    found += [
        PinnedImage(repo, reference, root(catalog, repo, reference), f"{note.file} cannot be read", unread=True)
        for note, (repo, reference) in unread.items()
        if note.kind == "pins"
    ]
    known = {(image.repo, image.reference) for image in found}
    for repo in catalog.repositories() if rules else ():
        found += [one for one in pinned_by_rules(rules, catalog, repo, root) if (repo, one.reference) not in known]
    return found


def pinned_by_rules(rules: Sequence[PinRule], catalog: Catalog, repo: Repo, root: RootReader) -> list[PinnedImage]:
    """Blocking: the tags of one repository that rules pin. Raises `StoreError`, and what `root` raises."""
    ruled = ((tag, rule_for(rules, repo, tag)) for tag in catalog.tags(repo))
    return [
        PinnedImage(repo, tag, root(catalog, repo, tag), rule.reason, rule=rule.match) for tag, rule in ruled if rule
    ]


def why_pinned(
    pinned: Iterable[PinnedImage], repo: Repo, *, tag: str | None = None, digest: Digest | None = None
) -> list[PinnedImage]:
    """Those of `pinned` because of which an image stays: by its tag, or as what its digest is pinned as."""
    return [
        image
        for image in pinned
        if image.repo == repo
        and (
            (tag is not None and image.reference == tag)
            or (digest is not None and (image.reference == digest or (image.root and image.root.digest == digest)))
        )
    ]


def shown_root(catalog: Catalog, repo: Repo, reference: Reference) -> Descriptor | None:
    """Blocking, to be shown: what an image points to; None, too, if that cannot be read."""
    return for_display(lambda: _root(catalog, repo, reference), name_of(repo, reference))


def _root(catalog: Catalog, repo: Repo, reference: Reference) -> Descriptor | None:
    """Raises `StoreError`."""
    if isinstance(reference, Digest):
        manifest = catalog.get_manifest(repo, reference)
        return Descriptor(manifest.media_type, reference, manifest.size) if manifest else None
    tag = catalog.get_tag(repo, reference)
    return Descriptor(tag.media_type, tag.digest, tag.size) if tag else None


class PinnedContent:
    """The digests that stay because of pins and freezes. May be asked from any thread."""

    def __init__(
        self,
        catalog: Catalog,
        pins: Pins,
        rules: Sequence[PinRule],
        names: ReferenceReader,
        *,
        frozen: Callable[[], tuple[Iterable[Freeze], Sequence[UnreadNote]]],
        answer: Callable[[Repo, str], Digest | None],
    ) -> None:
        """`frozen` are the tags that are, and freezes that cannot be read; `answer` is what a tag answers as far as it
        is known here, and `StoreError` where that cannot be told.
        """
        self._frozen = frozen
        self._answer = answer
        self._catalog = catalog
        self._pins = pins
        self._rules = tuple(rules)
        self._names = names
        self._lock = threading.Lock()
        #: What each pinned tag pointed to when last read: a record that cannot be read now, or is gone, unpins nothing.
        self._roots: dict[tuple[Repo, Reference], set[Digest]] = {}
        self._subjects = DamagedNoteOwners(catalog)
        self._told: set[UnreadNote] = set()

    def digests(self, now: float) -> Collection[Digest]:
        """Blocking, some 0.1 ms for each pinned image. Raises `StoreError` where pins or freezes cannot be read and it
        is not known what they are for: then nobody knows what must stay, and nothing may go.
        """
        with self._lock:
            pins, unread_pins = self._pins.look()
            freezes, unread_freezes = self._frozen()
            subjects = self._subjects_of([*unread_pins, *unread_freezes])
            whole = {repo for note, (repo, _) in subjects.items() if note.kind == "freezes"}
            roots: dict[tuple[Repo, Reference], set[Digest]] = {}
            unread: set[tuple[Repo, Reference]] = set()
            for image in images_of(pins, subjects, self._rules, self._catalog, now, root=self._reader(unread)):
                key = image.repo, image.reference
                known = self._roots.get(key, set())
                roots[key] = known if key in unread else self._roots_of(image, whole) or known
            self._roots = roots
            frozen = {freeze.digest for freeze in freezes}
            kept = {digest for repo in whole for digest in self._catalog.manifest_digests(repo)}
            return self._below(frozen.union(kept, *roots.values()))

    def _reader(self, unread: set[tuple[Repo, Reference]]) -> RootReader:
        """Reads what is pinned; a tag that cannot be read at the moment, and is known from before, goes to `unread`."""

        def read(catalog: Catalog, repo: Repo, reference: Reference) -> Descriptor | None:
            try:
                return _root(catalog, repo, reference)
            except StoreError as error:
                if isinstance(reference, Digest):
                    return None
                if not self._roots.get((repo, reference)):
                    raise StoreError(f"what the pinned {repo}:{reference} points to is not known: {error}") from error
                unread.add((repo, reference))
                return None

        return read

    def _subjects_of(self, unread: Collection[UnreadNote]) -> Mapping[UnreadNote, Subject]:
        """Raises `StoreError`."""
        known = self._subjects.known(unread)
        tell_unread(unread, self._told, known)
        return all_known(unread, known)

    def _roots_of(self, image: PinnedImage, whole: Collection[Repo]) -> set[Digest]:
        """Empty where a tag is not known. Of a repository that is kept `whole`, what the tag answers cannot be told."""
        if isinstance(image.reference, Digest):
            return {image.reference}
        now = None if image.repo in whole else self._answer(image.repo, image.reference)
        return {digest for digest in (now, image.root.digest if image.root else None) if digest}

    def _below(self, roots: set[Digest]) -> set[Digest]:
        """These, and all that they and the manifests below them name."""
        kept, left = set(roots), list(roots)
        while left:
            names = self._names.of(left.pop())
            if names is None:
                continue
            left += [digest for digest in names.manifests if digest not in kept]
            kept.update(names.manifests, names.blobs)
        return kept
