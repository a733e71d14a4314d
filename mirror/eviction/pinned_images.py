"""Which images are pinned, and which content must stay because of that. Read from the disk, never from the index.

    pins on disk ─────┐
                      ├──> images ── tag record ──> digest ──> what its manifests name, present or not: it stays
    rules, over tags ─┘                                             │
    freezes on disk ──────────────────────────────────────> digest ─┘

A pin whose file is damaged still holds if its image is known. A damaged freeze keeps its whole repository, because its
digest is not known. If not even the image of a damaged pin or freeze is known, nothing may be dropped
(`record_owners.py`).

A pinned tag protects the digest to which it points now. It also protects the digest that it answers now if that is
another one, because the tag is frozen or because the newest digest is not old enough yet. A frozen tag protects what it
answers, pinned or not. Content that is named but absent is protected as well, so that a blob that arrives later is safe
from the start.

Hosted images are never evicted, so what their tags point to is not read: a rule may match them (`**`), and a tag that
cannot be read must not stop the eviction of cached content, without which pushes find no room.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import filterfalse

from mirror.errors import StoreError
from mirror.eviction.record_owners import UnreadableRecordOwners, log_unread, require_all
from mirror.graph.manifests import for_display, stored_descriptor
from mirror.graph.references import ReferenceReader
from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor
from mirror.oci.reference import Reference, Repo
from mirror.policy.image_names import name_of
from mirror.policy.pins import PinRule, rule_for
from mirror.policy.records import Freeze, Pin
from mirror.policy.unreadable_records import Subject, UnreadableRecord
from mirror.ports import Catalog, Pins

#: Reads the descriptor to which a tag or digest points; None if it is not known here.
RootReader = Callable[[Catalog, Repo, Reference], Descriptor | None]


@dataclass(frozen=True, slots=True)
class PinnedImage:
    """An image that must stay, and why.

    `root` is what it points to now, None if that is not known here because no client pulled it yet. `since` and `until`
    are epoch seconds. `rule` is the pattern of the configured rule that pins it, None if it was pinned by hand.
    `unread` is true if the pin's file cannot be read but its image is known; `reason` then names the file.
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
    pins: Pins, rules: Sequence[PinRule], catalog: Catalog, now: float, subjects: UnreadableRecordOwners | None = None
) -> list[PinnedImage]:
    """Blocking: returns the pinned images for showing them to people: every pin in force, then the damaged pins whose
    image is known, then what the rules pin besides. A tag whose record cannot be read has no `root`. Raises
    `StoreError` for all other errors. A caller that asks often passes the same `subjects` each time, which saves
    searches.
    """
    read, unread = pins.look()
    return images_of(
        read, (subjects or UnreadableRecordOwners(catalog)).find(unread), rules, catalog, now, root=shown_root
    )


def images_of(
    pins: Iterable[Pin],
    unread: Mapping[UnreadableRecord, Subject],
    rules: Sequence[PinRule],
    catalog: Catalog,
    now: float,
    *,
    root: RootReader | None = None,
    leave_out: Callable[[Repo], bool] = lambda _: False,
) -> list[PinnedImage]:
    """Blocking: returns the pinned images for pins that were read already. `unread` are the damaged records whose image
    is known; those of freezes are ignored. `root` reads what an image points to. Repositories for which `leave_out` is
    true are not read. Raises `StoreError`, also if the record of a pinned tag cannot be read, unless `root` catches
    that.
    """
    root = root or stored_descriptor
    images = [
        PinnedImage(pin.repo, pin.reference, root(catalog, pin.repo, pin.reference), pin.reason, pin.since, pin.until)
        for pin in pins
        if pin.is_active(now) and not leave_out(pin.repo)
    ]
    images += [
        PinnedImage(repo, reference, root(catalog, repo, reference), f"{record.file} cannot be read", unread=True)
        for record, (repo, reference) in unread.items()
        if record.kind == "pins" and not leave_out(repo)
    ]
    pinned = {(image.repo, image.reference) for image in images}
    for repo in filterfalse(leave_out, catalog.repositories() if rules else ()):
        ruled = pinned_by_rules(rules, catalog, repo, root)
        images += [image for image in ruled if (repo, image.reference) not in pinned]
    return images


def pinned_by_rules(rules: Sequence[PinRule], catalog: Catalog, repo: Repo, root: RootReader) -> list[PinnedImage]:
    """Blocking: returns the tags of one repository that rules pin. Raises `StoreError`, and what `root` raises."""
    ruled = ((tag, rule_for(rules, repo, tag)) for tag in catalog.tags(repo))
    return [
        PinnedImage(repo, tag, root(catalog, repo, tag), rule.reason, rule=rule.match) for tag, rule in ruled if rule
    ]


def why_pinned(
    pinned: Iterable[PinnedImage], repo: Repo, *, tag: str | None = None, digest: Digest | None = None
) -> list[PinnedImage]:
    """Returns the images of `pinned` because of which an image stays: those with its tag and those with its digest."""
    return list(PinsOfRepository(image for image in pinned if image.repo == repo).why(tag, digest))


class PinsOfRepository:
    """The pinned images of one repository, to be asked for each of many images."""

    def __init__(self, pinned: Iterable[PinnedImage]) -> None:
        """`pinned` are of one repository; answers have their order."""
        self._pinned = tuple(pinned)
        #: Their numbers, by tag or digest.
        self._numbers: dict[Reference, list[int]] = {}
        for number, image in enumerate(self._pinned):
            for name in {image.reference, *([image.root.digest] if image.root else [])}:
                self._numbers.setdefault(name, []).append(number)

    def __repr__(self) -> str:
        return f"<PinsOfRepository {len(self._pinned)}>"

    def why(self, tag: str | None, digest: Digest | None) -> tuple[PinnedImage, ...]:
        """Returns those because of which an image stays: those with its tag and those with its digest."""
        names = (name for name in (tag, digest) if name is not None)
        numbers = {number for name in names for number in self._numbers.get(name, ())}
        return tuple(self._pinned[number] for number in sorted(numbers))


def shown_root(catalog: Catalog, repo: Repo, reference: Reference) -> Descriptor | None:
    """Blocking: returns what an image points to, for showing it to people; None also if that cannot be read."""
    return for_display(lambda: stored_descriptor(catalog, repo, reference), name_of(repo, reference))


class PinnedContent:
    """The digests that stay because of pins and freezes. May be called from any thread."""

    def __init__(
        self,
        catalog: Catalog,
        pins: Pins,
        rules: Sequence[PinRule],
        references: ReferenceReader,
        *,
        frozen: Callable[[], tuple[Iterable[Freeze], Sequence[UnreadableRecord]]],
        answer: Callable[[Repo, str], Digest | None],
        is_hosted: Callable[[Repo], bool] = lambda _: False,
    ) -> None:
        """`frozen` returns the freezes, and the records of freezes that cannot be read. `answer` returns the digest
        that a tag answers, None if it is not known here; it raises `StoreError` if that cannot be read.
        """
        self._frozen = frozen
        self._answer = answer
        self._is_hosted = is_hosted
        self._catalog = catalog
        self._pins = pins
        self._rules = tuple(rules)
        self._references = references
        self._lock = threading.Lock()
        #: What each pinned tag pointed to when last read. It stays pinned if the record is gone or cannot be read now.
        self._roots: dict[tuple[Repo, Reference], set[Digest]] = {}
        self._subjects = UnreadableRecordOwners(catalog)
        self._logged: set[UnreadableRecord] = set()

    def __repr__(self) -> str:
        return f"<PinnedContent images={len(self._roots)} rules={len(self._rules)}>"

    def digests(self, now: float) -> Collection[Digest]:
        """Blocking: returns the digests that must stay. `now` is in epoch seconds. Takes about 0.1 ms for each pinned
        image. Raises `StoreError` if it is not known what must stay, for example because a pin or freeze cannot be read
        and its image is not known; then nothing may be dropped.
        """
        with self._lock:
            pins, unread_pins = self._pins.look()
            freezes, unread_freezes = self._frozen()
            subjects = self._subjects_of([*unread_pins, *unread_freezes])
            whole = {repo for record, (repo, _) in subjects.items() if record.kind == "freezes"}
            roots: dict[tuple[Repo, Reference], set[Digest]] = {}
            unread: set[tuple[Repo, Reference]] = set()
            reader = self._reader(unread)
            for image in images_of(
                pins, subjects, self._rules, self._catalog, now, root=reader, leave_out=self._is_hosted
            ):
                key = image.repo, image.reference
                before = self._roots.get(key, set())
                roots[key] = before if key in unread else self._roots_of(image, whole) or before
            self._roots = roots
            frozen = {freeze.digest for freeze in freezes}
            frozen.update(digest for repo in whole for digest in self._catalog.manifest_digests(repo))
            return self._below(frozen.union(*roots.values()))

    def _reader(self, unread: set[tuple[Repo, Reference]]) -> RootReader:
        """Returns a reader of what a pinned image points to. A tag that cannot be read at the moment, but is known from
        an earlier read, is added to `unread`.
        """

        def read(catalog: Catalog, repo: Repo, reference: Reference) -> Descriptor | None:
            try:
                return stored_descriptor(catalog, repo, reference)
            except StoreError as error:
                if isinstance(reference, Digest):
                    return None
                if not self._roots.get((repo, reference)):
                    raise StoreError(f"what the pinned {repo}:{reference} points to is not known: {error}") from error
                unread.add((repo, reference))
                return None

        return read

    def _subjects_of(self, unread: Collection[UnreadableRecord]) -> Mapping[UnreadableRecord, Subject]:
        """Returns the image of each unreadable record, and logs new ones. Raises `StoreError` if one of the images is
        not known.
        """
        owners = self._subjects.find(unread)
        log_unread(unread, self._logged, owners)
        return require_all(unread, owners)

    def _roots_of(self, image: PinnedImage, whole: Collection[Repo]) -> set[Digest]:
        """Returns the digests that a pinned image protects; empty if its tag is not known. In a repository that is kept
        `whole`, because of a damaged freeze, it is not known what the tag answers.
        """
        if isinstance(image.reference, Digest):
            return {image.reference}
        now = None if image.repo in whole else self._answer(image.repo, image.reference)
        return {digest for digest in (now, image.root.digest if image.root else None) if digest}

    def _below(self, roots: set[Digest]) -> set[Digest]:
        """Returns `roots`, and everything that they and the manifests below them name."""
        staying, pending = set(roots), list(roots)
        while pending:
            references = self._references.of(pending.pop())
            if references is not None:
                pending += [digest for digest in references.manifests if digest not in staying]
                staying.update(references.manifests, references.blobs)
        return staying
