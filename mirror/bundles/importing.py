"""Imports images from a source that is not a registry: a bundle, or another registry's data on disk.

    source ── plan: manifests read, sizes compared, missing blobs listed ──> plan        nothing is written yet
    plan ── admit, image by image:
              blobs ──> manifests, children first ──> records of them ──> index updated ──> all synced ──> tag, synced

The tag is written last, so an image is either unchanged or complete. Blobs that are here already are skipped; so an
interrupted import continues where it stopped. A running mirror may fill the same blobs at the same time: the store's
lock decides which process fills a blob.

A repository may serve the blobs that the source brought for it. A blob's name in a manifest is not proof: no registry
has checked that manifest, and the blob may be here because of a private image. So a blob that is not in the source
counts as absent, unless the repository may serve it already, or a signed inventory says that the other side left it
out. A manifest that is imported without the blob (`partial`) does not grant it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, field
from typing import Final, Protocol

from mirror.aio.threads import uninterrupted
from mirror.bundles.inventory import ListedImage
from mirror.bundles.layout_source import FileBody
from mirror.errors import (
    BlobDamaged,
    BlobUnknown,
    BundleError,
    IndexUnavailable,
    RecordDamaged,
    StoreError,
    StoreFull,
)
from mirror.fills.filler import ReservedSpace, Room
from mirror.graph.damage import set_aside
from mirror.graph.manifests import StoredManifest
from mirror.graph.references import ReferenceReader
from mirror.intake.grants import granted_by, named_by
from mirror.intake.intake import Intake
from mirror.intake.tag_history import TagHistories
from mirror.oci.digest import Digest
from mirror.oci.manifest import LARGEST, Descriptor, Manifest, ManifestMalformed, read_manifest
from mirror.oci.reference import Repo
from mirror.policy.history import AgeRule
from mirror.policy.records import ContentRecord, References, TagRecord
from mirror.ports import BlobInfo, BlobStore, Catalog, ContentIndex, Ingest
from mirror.values.sizes import format_size

#: Called with the number of bytes that were read since the last call. If it raises, the work ends with that error.
Told = Callable[[int], None]

#: How many levels of indexes within indexes are allowed.
_DEEPEST: Final = 8
#: Manifests and blobs of all images together. A bundle with more is taken for an attack on memory.
_MOST_NAMED: Final = 5_000_000
#: How many problems an error lists.
_SHOWN: Final = 20
#: Seconds between two looks at a blob that another process fills, and seconds that such a blob may stop growing.
_LOOK: Final = 0.05
_STUCK: Final = 120.0


#: Returns whether the repository may serve the blob already. Blocking; raises `StoreError` if that cannot be found out.
MayServe = Callable[[Repo, Digest], bool]


class ImportSource(Protocol):
    """Where the bytes of an import come from. Every call may raise `BundleError`."""

    def size(self, digest: Digest) -> int | None:
        """The blob's size in bytes; None if the source does not have it."""

    def vouches(self, digest: Digest) -> bool:
        """True if the source shows that the blob belongs to the repository of its images, which may then serve it."""

    def manifest(self, digest: Digest) -> bytes | None:
        """The manifest's bytes, checked against the digest; None if the source does not have it."""

    def body(self, digest: Digest, start: int, told: Told) -> AbstractContextManager[FileBody]:
        """The blob's bytes from offset `start`, not verified. `told` is called with the bytes of each read."""


class IndexBatch:
    """What an import records, written to the index image by image. Implements `IndexWriter`."""

    def __init__(self, index: ContentIndex, touch: Callable[[Digest], None], now: Callable[[], float]) -> None:
        self.touch = touch
        #: False if the index did not take a batch.
        self.complete = True
        self._index = index
        self._now = now
        self._records: list[ContentRecord] = []
        self._references: list[References] = []

    async def record_blob(self, info: BlobInfo) -> None:
        self._records.append(ContentRecord(info.digest, info.size, self._now()))

    async def record_references(self, references: References, size: int) -> None:
        self._records.append(ContentRecord(references.digest, size, self._now()))
        self._references.append(references)

    async def write(self) -> None:
        """Writes the batch. What the index does not take, it learns when it is next compared with the disk."""
        records, self._records = self._records, []
        references, self._references = self._references, []
        try:
            await self._index.put(records)
            await self._index.record_references(references)
        except IndexUnavailable:
            self.complete = False


@dataclass(frozen=True, slots=True)
class ImportTarget:
    """The site that images are imported into.

    `intake` writes to `store` and `catalog`, and records in `index`. `exclusive` holds a named lock against all
    processes of the store, `age` gives the age rule for the tags of a repository.
    """

    store: BlobStore
    catalog: Catalog
    histories: TagHistories
    intake: Intake
    index: IndexBatch
    room: Room
    exclusive: Callable[[str], AbstractAsyncContextManager[object]]
    age: Callable[[Repo], AgeRule]
    now: Callable[[], float] = time.time


@dataclass(frozen=True, slots=True)
class PlannedImage:
    """An image to import. `manifests` has children before parents; `blobs` gives sizes in bytes (-1: unknown).

    `proven` are the blobs that the repository may serve, `embedded` the blobs whose bytes are in a manifest (`data`).
    """

    image: ListedImage
    source: ImportSource
    manifests: tuple[Descriptor, ...]
    blobs: Mapping[Digest, int]
    proven: frozenset[Digest]
    embedded: Mapping[Digest, bytes]


@dataclass(slots=True)
class ImportPlan:
    """What an import would do.

    `absent` are blobs that are neither in the source nor here for the repository that needs them, each with the name of
    an image that needs it. `refused` are the names of images that cannot be imported, each with the reason.
    """

    images: list[PlannedImage] = field(default_factory=list)
    absent: dict[Digest, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def contents(self) -> dict[Digest, int]:
        """The digests that the images need and the sources have, with their sizes in bytes."""
        found: dict[Digest, int] = {}
        for planned in self.images:
            for digest in (*(one.digest for one in planned.manifests), *planned.blobs):
                size = planned.source.size(digest)
                if size is not None:
                    found[digest] = size
        return found

    def expect_whole(self, *, partial: bool) -> None:
        """Raise `BundleError` if an image cannot be imported or, unless `partial`, would lack a blob."""
        problems = [f"{name}: {reason}" for name, reason in self.refused.items()]
        if not partial:
            problems += [
                f"{name}: {digest} is neither in it nor in this mirror for that repository"
                for digest, name in self.absent.items()
            ]
        if problems:
            more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
            raise BundleError("\n  ".join([*problems[:_SHOWN], *more]))


@dataclass(slots=True)
class Admitted:
    """The result of an import: the names of the images, the blobs and manifests that were `written` and those that were
    `here` already, with sizes in bytes.

    `damaged` are blobs that are wrong or unreadable in the source, with the reason; their images were imported without
    them.
    """

    images: list[str] = field(default_factory=list)
    written: dict[Digest, int] = field(default_factory=dict)
    here: dict[Digest, int] = field(default_factory=dict)
    damaged: dict[Digest, str] = field(default_factory=dict)
    #: The digests that moved tags pointed to before, by the image's name.
    moved: dict[str, Digest] = field(default_factory=dict)
    #: False if the index could not be updated; it then learns of the import when it is next compared with the disk.
    index_told: bool = True


# -------------------------------------------------------------------------------------------------------- plan


def plan_images(
    images: Iterable[tuple[ListedImage, ImportSource]],
    store: BlobStore,
    *,
    may_serve: MayServe,
    left_out: Collection[Digest] = (),
    pass_over_damaged: bool = False,
) -> ImportPlan:
    """Blocking: read every manifest and compare it with what the sources have. Writes nothing.

    `left_out` are the blobs that this side has according to a signed inventory. If a blob in the source has another
    size than its descriptor says, the image is refused; with `pass_over_damaged` it is planned, and `admit` will find
    that the blob is damaged. Raises `StoreError`.
    """
    planning = _Planning(store, may_serve, frozenset(left_out), pass_over_damaged)
    for image, source in images:
        try:
            planning.plan.images.append(planning.image(image, source))
        except (BundleError, ManifestMalformed) as error:
            planning.plan.refused[image.name] = str(error)
    return planning.plan


@dataclass(frozen=True, slots=True)
class _Read:
    """A manifest's descriptor, and the manifests and blobs that the manifest names."""

    descriptor: Descriptor
    manifests: tuple[Descriptor, ...]
    blobs: tuple[Descriptor, ...]


class _Planning:
    def __init__(
        self, store: BlobStore, may_serve: MayServe, left_out: frozenset[Digest], pass_over_damaged: bool
    ) -> None:
        self.plan = ImportPlan()
        self._store = store
        self._may_serve = may_serve
        self._left_out = left_out
        self._pass_over_damaged = pass_over_damaged
        self._read: dict[tuple[Digest, str], _Read] = {}
        self._named = 0

    def image(self, image: ListedImage, source: ImportSource) -> PlannedImage:
        manifests: dict[Digest, Descriptor] = {}
        blobs: dict[Digest, int] = {}
        absent: list[Digest] = []
        embedded: dict[Digest, bytes] = {}
        for read in self._below(image.root, source, set(), 0):
            manifests[read.descriptor.digest] = read.descriptor
            for blob in read.blobs:
                if blob.foreign or blob.digest in blobs:
                    continue
                blobs[blob.digest] = blob.size
                if blob.data is not None:
                    embedded[blob.digest] = blob.data
                elif not self._expect_blob(image.repo, blob, source):
                    absent.append(blob.digest)
        if image.root.digest not in manifests:
            raise BundleError(f"its manifest {image.root.digest} is not in it")
        self._named += len(manifests) + len(blobs)
        if self._named > _MOST_NAMED:
            raise BundleError(f"the images name more than {_MOST_NAMED} blobs together")
        for digest in absent:
            self.plan.absent.setdefault(digest, image.name)
        root = manifests[image.root.digest]
        listed = ListedImage(image.repo, image.tag, root)
        proven = frozenset(one for one in blobs.keys() - set(absent) if source.size(one) is None or source.vouches(one))
        return PlannedImage(listed, source, tuple(manifests.values()), blobs, proven, embedded)

    def _below(self, descriptor: Descriptor, source: ImportSource, seen: set[Digest], depth: int) -> Iterator[_Read]:
        """The manifest and those below it, children first. A child that the source lacks is a platform that was never
        pulled, and is skipped.
        """
        if descriptor.digest in seen:
            return
        seen.add(descriptor.digest)
        if depth > _DEEPEST:
            raise BundleError("indexes within indexes within indexes")
        read = self._manifest(descriptor, source)
        if read is None:
            return
        for child in read.manifests:
            yield from self._below(child, source, seen, depth + 1)
        yield read

    def _manifest(self, descriptor: Descriptor, source: ImportSource) -> _Read | None:
        digest, size = descriptor.digest, source.size(descriptor.digest)
        key = digest, descriptor.media_type
        if size is None:
            return None
        if size > LARGEST:
            raise BundleError(f"the manifest {digest} has {size} bytes, more than the {LARGEST} allowed")
        if descriptor.size not in (-1, size):
            raise BundleError(f"{digest} has {size} bytes, where its descriptor says {descriptor.size}")
        if key not in self._read:
            content = source.manifest(digest)
            if content is None:
                return None
            manifest = _parse(content, descriptor)
            described = Descriptor(manifest.media_type, digest, len(content))
            self._read[key] = _Read(described, manifest.manifests, manifest.blobs)
        return self._read[key]

    def _expect_blob(self, repo: Repo, blob: Descriptor, source: ImportSource) -> bool:
        """True if the source has the blob, or if it is here and the repository may use it. Raises `BundleError` if the
        source's blob has another size, `StoreError`.
        """
        size = source.size(blob.digest)
        if size is None:
            here = _size_here(self._store, blob.digest)
            if here is None or blob.size not in (-1, here):
                return False
            return blob.digest in self._left_out or self._may_serve(repo, blob.digest)
        if blob.size not in (-1, size) and not self._pass_over_damaged:
            raise BundleError(f"{blob.digest} has {size} bytes, where its descriptor says {blob.size}")
        return True


def _parse(content: bytes, descriptor: Descriptor) -> Manifest:
    try:
        return read_manifest(content, descriptor.media_type, algorithm=descriptor.digest.algorithm)
    except ManifestMalformed as error:
        raise BundleError(f"{descriptor.digest} is no manifest: {error}") from error


def _size_here(store: BlobStore, digest: Digest) -> int | None:
    """The blob's size in this store in bytes; None if it is certainly absent. Raises `StoreError`."""
    try:
        return store.stat(digest).size
    except BlobUnknown:
        return None


# ------------------------------------------------------------------------------------------------------- admit


async def admit(
    plan: ImportPlan, site: ImportTarget, *, told: Told = lambda _: None, pass_over_damaged: bool = False
) -> Admitted:
    """Import the planned images. `told` also counts bytes that need not be read because they are here already.

    With `pass_over_damaged`, a blob that is wrong or unreadable in the source is left out and its image is imported all
    the same; this is for repositories that can pull the blob from upstream later. Raises `BundleError`, `StoreFull`,
    `StoreError`; images that were finished before the error stay.
    """
    admitting = _Admitting(plan, site, told, pass_over_damaged)
    reservation = await admitting.reserve()
    try:
        for planned in plan.images:
            await admitting.image(planned)
    except (BundleError, StoreError) as error:
        done = len(admitting.result.images)
        raise type(error)(f"{error}; {done} of {len(plan.images)} images are in, another run goes on") from error
    finally:
        reservation.release()
        await site.intake.aclose()
    admitting.result.index_told = site.index.complete
    return admitting.result


class _Admitting:
    def __init__(self, plan: ImportPlan, site: ImportTarget, told: Told, pass_over_damaged: bool) -> None:
        self.result = Admitted()
        self._plan = plan
        self._site = site
        self._tell = told
        self._pass_over_damaged = pass_over_damaged
        self._stopped = False

    async def reserve(self) -> ReservedSpace:
        """Reserve room for everything at once, so that the import's last blobs do not evict its first ones."""
        needed, here = await asyncio.to_thread(self._needed)
        for digest in (*here, *await asyncio.to_thread(self._naming, frozenset(here))):
            # marked as used now, so that the eviction does not choose it to make the room
            self._site.intake.touch(digest)
        try:
            return await self._site.room.reserve(needed)
        except StoreFull as error:
            raise StoreFull(f"no room for the {format_size(needed)} to take in: {error}") from error

    def _needed(self) -> tuple[int, list[Digest]]:
        """Blocking: the number of bytes to write, and the digests that are here already, including blobs that the
        bundle left out.
        """
        needed, here = 0, []
        contents = self._plan.contents()
        for digest in contents.keys() | {digest for planned in self._plan.images for digest in planned.blobs}:
            if _size_here(self._site.store, digest) is None:
                needed += contents.get(digest, 0)
            else:
                here.append(digest)
        return needed, here

    def _naming(self, here: frozenset[Digest]) -> list[Digest]:
        """Blocking: the other manifests that name these blobs. The eviction drops a blob together with an image that
        names it, however recently the blob itself was used, so these manifests must count as used too.
        """
        names = ReferenceReader(self._site.store, self._site.catalog).everywhere() if here else {}
        return [each.digest for each in names.values() if each.digest not in here and not here.isdisjoint(each.blobs)]

    async def image(self, planned: PlannedImage) -> None:
        """Import one image: blobs, manifests with their records, the index, and the tag last."""
        for digest in planned.blobs:
            if digest in planned.embedded and planned.source.size(digest) is None:
                await asyncio.to_thread(self._put_embedded, digest, planned.embedded[digest])
            else:
                await self._blob(planned.source, digest)
        manifests = [await asyncio.to_thread(self._manifest, planned, one) for one in planned.manifests]
        await self._record(planned, manifests)
        await asyncio.to_thread(self._expect_whole, planned)
        # after a power cut a tag must never point to lost content: there may be no upstream to fetch it from again
        await self._site.intake.settled()
        if planned.image.tag is not None:
            await self._tag(planned.image, planned.image.tag)
        self.result.images.append(planned.image.name)

    def _told(self, count: int) -> None:
        """Count bytes. Called from the thread that reads; raises `BundleError` there if the import was stopped."""
        if self._stopped:
            raise BundleError("stopped")
        self._tell(count)

    # --------------------------------------------------------------------------------------------- one blob

    async def _blob(self, source: ImportSource, digest: Digest) -> None:
        done = self.result
        size = source.size(digest)
        if digest in done.written or digest in done.here or digest in done.damaged:
            return
        here = await asyncio.to_thread(_size_here, self._site.store, digest)
        if here is not None and size not in (None, here):
            # only the bytes show whether the stored blob or the source's is wrong
            await asyncio.to_thread(set_aside, self._site.store, digest)
            here = await asyncio.to_thread(_size_here, self._site.store, digest)
        if here is not None:
            done.here[digest] = here
            self._told(size or 0)
        elif size is not None:
            await self._take(source, digest, size)

    def _put_embedded(self, digest: Digest, content: bytes) -> None:
        """Blocking: store a blob whose bytes are in its manifest."""
        if digest in self.result.written or digest in self.result.here:
            return
        done = self.result.written if _size_here(self._site.store, digest) is None else self.result.here
        self._site.store.put(digest, content)
        done[digest] = len(content)

    async def _take(self, source: ImportSource, digest: Digest, size: int) -> None:
        try:
            by_us = await self._fill(source, digest, size)
        except (BlobDamaged, BundleError) as error:
            if self._stopped or not self._pass_over_damaged:
                raise BundleError(f"taking in {digest}: {error}") from error
            self.result.damaged[digest] = str(error)
        else:
            (self.result.written if by_us else self.result.here)[digest] = size

    async def _fill(self, source: ImportSource, digest: Digest, size: int) -> bool:
        """Get the blob into the store. False if another process stored it meanwhile."""
        loop = asyncio.get_running_loop()
        moved_at, seen = loop.time(), -1
        while await asyncio.to_thread(_size_here, self._site.store, digest) is None:
            ingest = await asyncio.to_thread(self._site.store.ingest, digest, "")
            try:
                if ingest.try_lock():
                    return await self._in_thread(self._fill_locked, ingest, source, digest, size)
                offset = ingest.offset
            finally:
                ingest.close()
            if offset != seen:
                moved_at, seen = loop.time(), offset
            elif loop.time() - moved_at > _STUCK:
                raise StoreError(f"another process fills {digest}, and does not move")
            await asyncio.sleep(_LOOK)
        return False

    def _fill_locked(self, ingest: Ingest, source: ImportSource, digest: Digest, size: int) -> bool:
        """Blocking, under the ingest's lock: fill the blob, from where an earlier fill stopped. False if it is stored
        already.
        """
        if _size_here(self._site.store, digest) is not None:
            # between the look and the lock another process may have published it
            ingest.abort(keep=False)
            return False
        start = ingest.resume()
        if start > size:
            ingest.restart()
            start = 0
        self._told(start)
        try:
            try:
                self._receive(ingest, source, digest, start)
            except BlobDamaged:
                if not start:
                    raise
                # the bytes of the earlier fill may have been wrong: read the whole blob
                ingest.restart()
                self._receive(ingest, source, digest, 0)
        except BlobDamaged:
            ingest.abort(keep=False)
            raise
        ingest.commit()
        return True

    def _receive(self, ingest: Ingest, source: ImportSource, digest: Digest, start: int) -> None:
        with source.body(digest, start, self._told) as body:
            ingest.expect(body.size)
            ingest.fill(body, lambda: None)
        ingest.verify()

    async def _in_thread(self, work: Callable[..., bool], *arguments: object) -> bool:
        """Run blocking work in a thread. If cancelled, stop the work and wait for its end, because it uses open files
        that belong to this import.
        """
        return await uninterrupted(asyncio.to_thread(work, *arguments), stop=self._stop)

    def _stop(self) -> None:
        self._stopped = True

    # ----------------------------------------------------------------------------------- manifests, index, tag

    def _manifest(self, planned: PlannedImage, descriptor: Descriptor) -> StoredManifest:
        """Blocking: write the manifest's bytes, then the repository's record of it. A record that is here already keeps
        its time and its grants.
        """
        site, repo, digest = self._site, planned.image.repo, descriptor.digest
        content = planned.source.manifest(digest)
        if content is None:
            raise BundleError(f"{digest} is gone from where it was read before")
        manifest = _parse(content, descriptor)
        is_sound = _is_sound(site.store, digest)
        try:
            record = site.catalog.get_manifest(repo, digest)
        except RecordDamaged:
            # the new record replaces the damaged one
            record = None
        before = StoredManifest(record, manifest) if record and record.media_type == manifest.media_type else None
        grants = _grants(manifest, planned.proven, before)
        if before and before.record.grants == grants and is_sound:
            stored = before
        else:
            write = site.intake.link_manifest if is_sound else site.intake.put_manifest
            stored = write(repo, manifest, grants, before.record.fetched_at if before else None)
        if not is_sound:
            self.result.written[digest] = len(content)
        elif digest not in self.result.written:
            self.result.here[digest] = len(content)
        self._told(len(content))
        return stored

    async def _record(self, planned: PlannedImage, stored: Sequence[StoredManifest]) -> None:
        """Update index and grants as a pull does: sizes and last use, and what the repository may serve."""
        for digest in planned.blobs:
            size = self.result.written.get(digest, self.result.here.get(digest))
            if size is not None:
                await self._site.intake.record_blob(BlobInfo(digest, size))
        await self._site.intake.record_manifests(planned.image.repo, *stored)
        await self._site.index.write()

    def _expect_whole(self, planned: PlannedImage) -> None:
        """Blocking: check that the image's blobs are here. Raises `StoreFull` if a blob was evicted meanwhile."""
        for digest in planned.blobs:
            expected = digest not in self._plan.absent and digest not in self.result.damaged
            if expected and _size_here(self._site.store, digest) is None:
                name = planned.image.name
                raise StoreFull(f"{digest} of {name} was dropped while it was taken in: the store is too small")

    async def _tag(self, image: ListedImage, tag: str) -> None:
        """Write the tag as if upstream had answered with it now: its history first, under the lock that pulls of this
        tag take.
        """
        site, repo, root = self._site, image.repo, image.root
        async with site.exclusive(f"tag {repo}:{tag}"):
            was = await asyncio.to_thread(site.histories.known_tag, repo, tag)
            said = TagRecord(tag, root.digest, root.media_type, root.size, site.now())
            before = await site.intake.put_tag(repo, was, said, site.age(repo))
        await site.intake.settled()
        if before is not None:
            self.result.moved[image.name] = before


def _grants(manifest: Manifest, proven: Collection[Digest], before: StoredManifest | None) -> tuple[Digest, ...] | None:
    """The grants to write into the manifest's record: the blobs that the repository may serve because of this manifest,
    which are those granted before and the proven ones. None if that is what any manifest of its type grants.
    """
    may = {blob.digest for blob in manifest.blobs if not blob.foreign and blob.digest in proven}
    if before:
        may |= granted_by(before).keys()
    may.discard(manifest.digest)
    return None if may == named_by(manifest).keys() - {manifest.digest} else tuple(sorted(may))


def _is_sound(store: BlobStore, digest: Digest) -> bool:
    """True if the manifest is here and undamaged; a damaged one is set aside. Raises `StoreError` if unreadable."""
    try:
        store.read(digest, LARGEST)
    except BlobUnknown:
        return False
    except BlobDamaged:
        set_aside(store, digest)
        return False
    return True
