"""Imports images from a source that is not a registry: a bundle, or another registry's data on disk.

    source ── `import_plan.py`: manifests read, sizes compared, missing blobs listed ──> plan    nothing is written yet
    plan ── import, image by image:
              blobs ──> manifests, children first ──> records of them ──> index updated ──> all synced ──> tag, synced

The tag is written last, so an image is either unchanged or complete. Blobs that are here already are skipped; so an
interrupted import continues where it stopped.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

from mirror.aio.threads import uninterrupted
from mirror.bundles.blob_import import BlobImport, HostedBlobImport, HostedTarget, ImportedBlobs, ImportProgress
from mirror.bundles.import_plan import ImportPlan, PlannedImage, parse_manifest, size_here
from mirror.bundles.inventory import ListedImage
from mirror.bundles.layout_source import OnRead
from mirror.errors import (
    BlobDamaged,
    BlobUnknown,
    BundleError,
    IndexUnavailable,
    RecordDamaged,
    RequestError,
    StoreError,
    StoreFull,
)
from mirror.fills.room import ReservedSpace, Room
from mirror.graph.damage import set_aside
from mirror.graph.manifests import StoredManifest
from mirror.graph.references import ReferenceReader
from mirror.intake.grants import granted_by, named_by
from mirror.intake.intake import Intake
from mirror.intake.tag_history import TagHistories
from mirror.oci.digest import Digest
from mirror.oci.manifest import LARGEST, Descriptor, Manifest
from mirror.oci.reference import Repo
from mirror.policy.history import AgeRule
from mirror.policy.records import ContentRecord, References, TagRecord
from mirror.ports import BlobInfo, BlobStore, Catalog, ContentIndex
from mirror.values.sizes import format_size


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

    `hosted` takes those of hosted repositories; without it, all are cached. `intake` writes to `store` and `catalog`,
    and records in `index`. `exclusive` holds a named lock against all processes of the store, `age` gives the age rule
    for the tags of a repository.
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
    hosted: HostedTarget | None = None


@dataclass(slots=True)
class ImportResult(ImportedBlobs):
    """The result of an import: its images by name, and its blobs. Images with damaged blobs were imported without them.

    `moved` has the digests that moved tags pointed to before, by the image's name. `index_updated` is False if the
    index did not answer; it learns of the import when it is next compared with the disk.
    """

    images: list[str] = field(default_factory=list)
    moved: dict[str, Digest] = field(default_factory=dict)
    index_updated: bool = True


async def run_import(
    plan: ImportPlan, target: ImportTarget, *, on_read: OnRead = lambda _: None, skip_damaged: bool = False
) -> ImportResult:
    """Import the planned images. `on_read` also counts bytes that need not be read because they are here already.

    With `skip_damaged`, a blob that is wrong or unreadable in the source is left out and its image is imported all the
    same; this is for repositories that can pull the blob from upstream later. Raises `BundleError`, `StoreFull`,
    `StoreError`; images that were finished before the error stay.
    """
    run = _Import(plan, target, on_read, skip_damaged)
    reservation = await run.reserve()
    try:
        for planned in plan.images:
            await run.image(planned)
    except (BundleError, StoreError) as error:
        done = f"{len(run.result.images)} of {len(plan.images)} images are imported"
        raise type(error)(f"{error}; {done}: run the import again to continue") from error
    finally:
        reservation.release()
        await target.intake.aclose()
    run.result.index_updated = target.index.complete
    return run.result


class _Import:
    def __init__(self, plan: ImportPlan, target: ImportTarget, on_read: OnRead, skip_damaged: bool) -> None:
        self.result = ImportResult()
        self._plan = plan
        self._target = target
        self._progress = ImportProgress(self.result, on_read, skip_damaged)
        self._cached = BlobImport(target.store, self._progress)
        self._hosted = HostedBlobImport(target.hosted, self._progress) if target.hosted is not None else None

    async def reserve(self) -> ReservedSpace:
        """Reserve room for everything at once, so that the import's last blobs do not evict its first ones."""
        needed, here = await asyncio.to_thread(self._needed)
        for digest in (*here, *await asyncio.to_thread(self._naming, frozenset(here))):
            # marked as used now, so that the eviction does not choose it to make the room
            self._target.intake.touch(digest)
        try:
            return await self._target.room.reserve(needed)
        except StoreFull as error:
            raise StoreFull(f"no room for the {format_size(needed)} to import: {error}") from error

    def _needed(self) -> tuple[int, list[Digest]]:
        """Blocking: the number of bytes to write, and the digests that the cache has already, including blobs that the
        bundle left out.
        """
        needed, here, contents = 0, [], self._plan.contents()
        hosted, cached = self._digests(hosted=True), self._digests(hosted=False)
        for digest in hosted | cached:
            if size_here(self._target.store, digest) is not None:
                here.append(digest)
                continue
            places = [digest in cached, digest in hosted and not self._has(digest)]
            needed += contents.get(digest, 0) * sum(places)
        return needed, here

    def _digests(self, *, hosted: bool) -> set[Digest]:
        """The manifests and blobs of the images of hosted repositories, or of the others."""
        images = [planned for planned in self._plan.images if (self._hosted_for(planned) is not None) is hosted]
        manifests = {manifest.digest for planned in images for manifest in planned.manifests}
        return manifests | {digest for planned in images for digest in planned.blobs}

    def _has(self, digest: Digest) -> bool:
        return self._target.hosted is not None and self._target.hosted.size(digest) is not None

    def _hosted_for(self, planned: PlannedImage) -> HostedTarget | None:
        """What takes the image into its repository, if that is hosted here."""
        hosted = self._target.hosted
        return hosted if hosted is not None and hosted.is_hosted(planned.image.repo) else None

    def _naming(self, here: frozenset[Digest]) -> list[Digest]:
        """Blocking: the other manifests that name these blobs. The eviction drops a blob together with an image that
        names it, however recently the blob itself was used, so these manifests must count as used too.
        """
        manifests = ReferenceReader(self._target.store, self._target.catalog).everywhere().values() if here else ()
        return [names.digest for names in manifests if names.digest not in here and not here.isdisjoint(names.blobs)]

    async def image(self, planned: PlannedImage) -> None:
        """Import one image: blobs, manifests with their records, the index, and the tag last."""
        hosted = self._hosted_for(planned)
        blobs = self._hosted if hosted is not None and self._hosted is not None else self._cached
        for digest in planned.blobs:
            if digest in planned.embedded and planned.source.size(digest) is None:
                await asyncio.to_thread(blobs.put_embedded, digest, planned.embedded[digest])
            else:
                await blobs.add(planned.source, digest)
        if hosted is not None:
            await self._host(planned, hosted)
            self.result.images.append(planned.image.name)
            return
        manifests = [await asyncio.to_thread(self._manifest, planned, descriptor) for descriptor in planned.manifests]
        await self._record(planned, manifests)
        await asyncio.to_thread(self._require_complete, planned)
        # after a power cut a tag must never point to lost content: there may be no upstream to fetch it from again
        await self._target.intake.settled()
        if planned.image.tag is not None:
            await self._tag(planned.image, planned.image.tag)
        self.result.images.append(planned.image.name)

    async def _host(self, planned: PlannedImage, hosted: HostedTarget) -> None:
        """Import one image, whose blobs are hosted, into a hosted repository."""
        manifests = []
        for descriptor in planned.manifests:
            content = planned.source.manifest(descriptor.digest)
            if content is None:
                raise BundleError(f"{descriptor.digest} is no longer in the source")
            manifests.append(parse_manifest(content, descriptor))
            self.result.written[descriptor.digest] = len(content)
            self._progress.count(len(content))
        image, blobs = planned.image, sorted(planned.proven)
        try:
            before = await uninterrupted(asyncio.to_thread(hosted.take, image.repo, blobs, manifests, image.tag))
        except RequestError as error:
            raise BundleError(f"{image.name}: {error}") from error
        if before is not None:
            self.result.moved[image.name] = before

    def _manifest(self, planned: PlannedImage, descriptor: Descriptor) -> StoredManifest:
        """Blocking: write the manifest's bytes, then the repository's record of it. A record that is here already keeps
        its time and its grants.
        """
        target, repo, digest = self._target, planned.image.repo, descriptor.digest
        content = planned.source.manifest(digest)
        if content is None:
            raise BundleError(f"{digest} is no longer in the source")
        manifest = parse_manifest(content, descriptor)
        is_sound = _is_sound(target.store, digest)
        try:
            record = target.catalog.get_manifest(repo, digest)
        except RecordDamaged:
            # the new record replaces the damaged one
            record = None
        before = StoredManifest(record, manifest) if record and record.media_type == manifest.media_type else None
        grants = _grants(manifest, planned.proven, before)
        if before and before.record.grants == grants and is_sound:
            stored = before
        else:
            write = target.intake.link_manifest if is_sound else target.intake.put_manifest
            stored = write(repo, manifest, grants, before.record.fetched_at if before else None)
        if not is_sound:
            self.result.written[digest] = len(content)
        elif digest not in self.result.written:
            self.result.here[digest] = len(content)
        self._progress.count(len(content))
        return stored

    async def _record(self, planned: PlannedImage, stored: Sequence[StoredManifest]) -> None:
        """Update index and grants as a pull does: sizes and last use, and what the repository may serve."""
        for digest in planned.blobs:
            size = self.result.size(digest)
            if size is not None:
                await self._target.intake.record_blob(BlobInfo(digest, size))
        await self._target.intake.record_manifests(planned.image.repo, *stored)
        await self._target.index.write()

    def _require_complete(self, planned: PlannedImage) -> None:
        """Blocking: check that the image's blobs are here. Raises `StoreFull` if a blob was evicted meanwhile."""
        for digest in planned.blobs:
            expected = digest not in self._plan.absent and digest not in self.result.damaged
            if expected and size_here(self._target.store, digest) is None:
                name = planned.image.name
                raise StoreFull(f"{digest} of {name} was evicted during the import: the store is too small")

    async def _tag(self, image: ListedImage, tag: str) -> None:
        """Write the tag as if upstream had answered with it now: its history first, under the lock that pulls of this
        tag take.
        """
        target, repo, root = self._target, image.repo, image.root
        async with target.exclusive(f"tag {repo}:{tag}"):
            was = await asyncio.to_thread(target.histories.known_tag, repo, tag)
            new = TagRecord(tag, root.digest, root.media_type, root.size, target.now())
            before = await target.intake.put_tag(repo, was, new, target.age(repo))
        await target.intake.settled()
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
