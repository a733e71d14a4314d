"""Drops one image at an operator's request: first its tags and manifests, then the blobs that nothing else needs.

    1. refuses if the image is pinned or frozen, or if that cannot be read
    2. refuses if a manifest or tag that may need a part of the image cannot be read: what it names is not known
    3. drops the record of the tag (for a digest: of all tags that point to it)
    4. drops the links of those of its manifests that nothing else in the repository names; none of them if another tag
       points to the same image
    5. drops the blobs that no manifest of any repository names any more, except those that pins or downloads need, and
       what interrupted downloads have left of them

If the bucket keeps cached content, step 0 brings back from it what the disk lacks of the repository, steps 3 and 4 drop
its records before those on the disk and once more after them, because another process may have written them behind
meanwhile; step 5 drops its blobs as well. If the bucket does not answer, the purge fails.

Everything is read before anything is dropped, so that a refused purge changes nothing. Before step 5 the manifests that
arrived meanwhile are read as well; if that fails, the blobs stay. A crash leaves blobs that nothing names; eviction
drops them first. A pull at the same moment, or later, brings the image back: to forbid an image use `[content] deny`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

from mirror.aio.threads import uninterrupted
from mirror.errors import (
    BlobDamaged,
    ImageHosted,
    ImageProtected,
    IndexUnavailable,
    ManifestUnknown,
    RecordDamaged,
    StoreError,
)
from mirror.eviction.evictor import Evictor
from mirror.eviction.pinned_images import images_of, why_pinned
from mirror.eviction.record_owners import UnreadableRecordOwners
from mirror.graph.closure import Closure, read_closure
from mirror.graph.manifests import has_blob, manifest_of_bytes
from mirror.graph.walk import walk
from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor, Manifest
from mirror.oci.reference import Repo
from mirror.policy.image_names import Image, name_of
from mirror.policy.pins import PinRule
from mirror.ports import BlobStore, Catalog, ContentIndex, Freezes, Pins


@dataclass(frozen=True, slots=True)
class Purged:
    """What was dropped: tags, links of manifests, and the number of blobs and their bytes. `unconfirmed` are other
    replicas that have not dropped it yet.
    """

    image: str
    repo: Repo
    tags: tuple[str, ...]
    manifests: tuple[Digest, ...]
    blobs: int
    bytes: int
    unconfirmed: tuple[str, ...] = ()


#: For each manifest of each repository: the candidates that it is or names.
_Named = Mapping[Repo, Mapping[Digest, frozenset[Digest]]]


@dataclass(frozen=True, slots=True)
class _Plan:
    """What will be dropped: tags, links of manifests, and those `candidates` that nothing names afterwards. `named` is
    what the manifests here named when the plan was made.
    """

    repo: Repo
    root: Digest
    tags: tuple[str, ...]
    manifests: tuple[Digest, ...]
    candidates: frozenset[Digest]
    named: _Named


class KeptImages(Protocol):
    """Cached content that is kept elsewhere as well. Every call raises `StoreError` if that cannot be reached."""

    async def restore(self, repo: Repo) -> None:
        """Brings everything of a repository to the disk."""

    def drop_records(self, repo: Repo, tags: Iterable[str], manifests: Iterable[Digest]) -> None:
        """Blocking: deletes records of a repository there. Repeatable."""

    def drop_blobs(self, digests: Collection[Digest]) -> None:
        """Blocking: deletes blobs there. Repeatable."""


async def _forget_nothing(repo: Repo, tags: Collection[str], digests: Collection[Digest]) -> None:
    """For a store of which no process remembers anything."""


class Purge:
    """Purges images of one store. `forget` is called with the tags and manifests that must no longer be answered from
    memory, and then with the manifests and blobs that the repository may no longer serve; it raises `StoreError`.
    `is_hosted` is true for repositories that are hosted here: their images are deleted, not purged.
    """

    def __init__(
        self,
        store: BlobStore,
        catalog: Catalog,
        pins: Pins,
        rules: Iterable[PinRule],
        freezes: Freezes,
        index: ContentIndex,
        evictor: Evictor,
        *,
        forget: Callable[[Repo, Collection[str], Collection[Digest]], Awaitable[None]] = _forget_nothing,
        is_hosted: Callable[[Repo], bool] = lambda _: False,
        kept: KeptImages | None = None,
    ) -> None:
        """`kept` is where cached content is kept as well; None if it is not."""
        self._store = store
        self._catalog = catalog
        self._pins = pins
        self._rules = tuple(rules)
        self._freezes = freezes
        self._index = index
        self._evictor = evictor
        self._forget = forget
        self._is_hosted = is_hosted
        self._kept = kept

    async def __call__(self, image: Image) -> Purged:
        """Purges an image and returns what was dropped. Raises `ManifestUnknown` if the image is not here,
        `ImageProtected` if it must stay, `ImageHosted`, and `StoreError`. After an error the image is unchanged, unless
        the message of the `StoreError` says that blobs of it stay.
        """
        if self._is_hosted(image.repo):
            raise ImageHosted(f"{image} is hosted here, not cached: use `mirror delete`")
        if self._kept is not None:
            with _unchanged(image):
                await self._kept.restore(image.repo)
        plan = await asyncio.to_thread(self._plan, image)
        async with self._evictor.turn():
            # pins set since the plan was made are read here; setting a pin now waits for the end of this turn
            await uninterrupted(asyncio.to_thread(self._unname, image, plan))
        await self._forget(image.repo, plan.tags, plan.manifests)
        try:
            # read again, now that the links are gone: what was linked meanwhile stays
            named = await asyncio.to_thread(self._named, plan.candidates, plan.named)
            needed = {repo: set().union(*by_manifest.values()) for repo, by_manifest in named.items()}
            dropped = plan.candidates.difference(*needed.values())
            blobs, size = await self._evictor.drop(dropped)
            await asyncio.to_thread(self._store.drop_growing, dropped)
            await asyncio.to_thread(self._drop_kept, plan, dropped)
        except StoreError as error:
            raise StoreError(f"{image} is purged, but blobs of it stay until they are evicted: {error}") from error
        unlinked = sorted(plan.candidates - needed.get(image.repo, set()))
        with suppress(IndexUnavailable):
            # without the index, the reconciliation of index and disk finds the wrong links later
            await self._index.unlink(image.repo, unlinked)
        try:
            # not before: whoever asks the index remembers its answer
            await self._forget(image.repo, (), unlinked)
        except StoreError as error:
            raise StoreError(
                f"{image} is purged, but other workers may serve its blobs from memory until they end: {error}"
            ) from error
        return Purged(name_of(image.repo, image.reference), image.repo, plan.tags, plan.manifests, blobs, size)

    def _plan(self, image: Image) -> _Plan:
        """Blocking: does steps 1 and 2, and returns what to drop. Changes nothing. Raises `ManifestUnknown`,
        `ImageProtected`, `StoreError`.
        """
        repo = image.repo
        with _unchanged(image):
            root, tags = self._find(image)
            self._refuse_if_protected(image, root.digest, tags)
            closure = read_closure(self._store, self._catalog, repo, root)
            manifests = self._unnamed_manifests(repo, root, tags, closure)
            candidates = frozenset(node.digest for node in closure.nodes) if manifests else frozenset[Digest]()
            named = self._named(candidates, {})
        return _Plan(repo, root.digest, tags, tuple(sorted(manifests)), candidates, named)

    def _unname(self, image: Image, plan: _Plan) -> None:
        """Blocking: checks pins and freezes again, then does steps 3 and 4. Raises `ImageProtected`, `StoreError`."""
        with _unchanged(image):
            self._refuse_if_protected(image, plan.root, plan.tags)
            if self._kept is not None:
                self._kept.drop_records(plan.repo, plan.tags, plan.manifests)
        for tag in plan.tags:
            self._catalog.drop_tag(plan.repo, tag)
        for digest in plan.manifests:
            self._catalog.drop_manifest(plan.repo, digest)

    def _drop_kept(self, plan: _Plan, dropped: Collection[Digest]) -> None:
        """Blocking: drops elsewhere what was dropped here. Blobs that were to be dropped and are still here are needed.
        Raises `StoreError`.
        """
        if self._kept is not None:
            self._kept.drop_records(plan.repo, plan.tags, plan.manifests)
            self._kept.drop_blobs([digest for digest in dropped if not has_blob(self._store, digest)])

    def _find(self, image: Image) -> tuple[Descriptor, tuple[str, ...]]:
        """Blocking: returns the descriptor of the image, and the tags that are dropped with it. Raises
        `ManifestUnknown`, `StoreError`.
        """
        repo = image.repo
        if image.digest is None:
            tag = str(image.reference)
            record = self._catalog.get_tag(repo, tag)
            if record is None:
                raise ManifestUnknown(f"{image} is not here")
            return record.descriptor, (tag,)
        manifest = self._catalog.get_manifest(repo, image.digest)
        if manifest is None:
            raise ManifestUnknown(f"{image} is not here")
        pointing = tuple(tag for tag in self._catalog.tags(repo) if self._points(repo, tag) == image.digest)
        return manifest.descriptor, pointing

    def _points(self, repo: Repo, tag: str) -> Digest | None:
        record = self._catalog.get_tag(repo, tag)
        return record.digest if record else None

    def _refuse_if_protected(self, image: Image, digest: Digest, tags: Iterable[str]) -> None:
        """Blocking: raises `ImageProtected` if the image must stay, and `StoreError` if a pin or a freeze that may be
        for this image cannot be read.
        """
        pins, unread_pins = self._pins.look()
        freezes, unread_freezes = self._freezes.look()
        subjects = UnreadableRecordOwners(self._catalog).of([*unread_pins, *unread_freezes])
        pinned = images_of(pins, subjects, self._rules, self._catalog, time.time(), leave_out=self._is_hosted)
        for tag in (*tags, None):
            for why in why_pinned(pinned, image.repo, tag=tag, digest=digest):
                by = f"the rule {why.rule}" if why.rule else f"the pin of {name_of(why.repo, why.reference)}"
                raise ImageProtected(f"{image} stays because of {by}; unpin it first")
        for record, (repo, reference) in subjects.items():
            if record.kind == "freezes" and repo == image.repo:
                name = name_of(repo, reference)
                raise ImageProtected(
                    f"{image} stays because {name} is frozen, but at what cannot be read: freeze it --at a digest, or "
                    "unfreeze it"
                )
        for freeze in freezes:
            if freeze.repo == image.repo and freeze.digest == digest:
                raise ImageProtected(
                    f"{image} stays because {freeze.repo}:{freeze.tag} is frozen at it; unfreeze that first"
                )

    def _unnamed_manifests(self, repo: Repo, root: Descriptor, tags: Collection[str], closure: Closure) -> set[Digest]:
        """Blocking: returns the manifests of the image that no freeze, no tag except `tags`, and no other manifest of
        the repository names. Raises `StoreError`.
        """
        ours = {root.digest, *closure.named}
        others = (tag for tag in self._catalog.tags(repo) if tag not in tags)
        named = {digest for tag in others if (digest := self._points(repo, tag))}
        named |= {freeze.digest for freeze in self._freezes.all() if freeze.repo == repo}

        def read(_repo: Repo, digest: Digest) -> Manifest | None:
            return None if digest in ours else manifest_of_bytes(self._store, digest)

        for _, _, other in walk(self._catalog, read, repos=[repo]):
            named.update(child.digest for child in other.manifests)
        pending = list(ours & named)
        while pending:
            below = [child for child in closure.named.get(pending.pop(), ()) if child in ours and child not in named]
            named.update(below)
            pending += below
        return (ours - named).intersection(self._catalog.manifest_digests(repo))

    def _named(self, candidates: frozenset[Digest], before: _Named) -> _Named:
        """Blocking: returns for every manifest here the `candidates` that it is or names. Reads one file for each
        manifest that is not in `before`. Raises `StoreError`.
        """
        now: dict[Repo, dict[Digest, frozenset[Digest]]] = {}

        def read(repo: Repo, digest: Digest) -> frozenset[Digest] | None:
            if (named := before.get(repo, {}).get(digest)) is not None:
                return named
            manifest = manifest_of_bytes(self._store, digest)
            if manifest is None:
                return None
            children = (child.digest for child in (*manifest.manifests, *manifest.blobs))
            return candidates.intersection((digest, *children))

        for repo, digest, named in walk(self._catalog, read, repos=None if candidates else ()):
            now.setdefault(repo, {})[digest] = named
        return now


@contextmanager
def _unchanged(image: Image) -> Iterator[None]:
    """Turns each `StoreError` raised inside into one that says that the image is not purged. To be used while nothing
    of the image was dropped yet.
    """
    try:
        yield
    except StoreError as error:
        raise StoreError(
            f"{image} is not purged, because it is not known what must stay: {error}{_hint(error)}"
        ) from error


def _hint(error: StoreError) -> str:
    """Returns what an operator can do about an error that does not go away by itself, else an empty string."""
    if isinstance(error, BlobDamaged):
        return "; `mirror verify` repairs it, or takes it out of the way"
    if isinstance(error, RecordDamaged):
        return "; pull or import it again, which writes a new one"
    return ""
