"""The one way in for images: pulls, prefetches and imports all write with it, in this order.

    bytes ──> record (the repository has the manifest) ──> tag, its history first        on the disk, for all processes
                  └── record_manifests(): index, embedded blobs, grants                   may fail: the disk has it all

Each step names only what the step before it has written, so a crash in between leaves nothing that points to missing
bytes. What was written is visible to all processes at once, and survives a power cut after `settled`. A pull does not
wait for that: after a power cut, upstream is only asked again. An import does, before it writes the tag.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Final, Protocol, TypeVar

from mirror.aio.background import BackgroundTasks
from mirror.aio.closing import close_all
from mirror.aio.singleflight import SingleFlight
from mirror.errors import StoreError
from mirror.graph.manifests import StoredManifest, has_blob
from mirror.intake.grants import Grants, granted_by
from mirror.intake.integrity import Integrity
from mirror.intake.store_health import StoreHealth
from mirror.intake.tag_history import TagHistories
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest
from mirror.oci.reference import Repo
from mirror.policy.history import AgeRule
from mirror.policy.records import ManifestRecord, References, TagRecord
from mirror.ports import BlobInfo, BlobStore, Catalog

T = TypeVar("T")

#: Seconds that an answer waits for a blob or manifest to be written to the index.
_PATIENCE: Final = 0.25


class IndexWriter(Protocol):
    """How the index learns of content. It is only a cache of the disk, so what it does not take is written later."""

    def touch(self, digest: Digest) -> None:
        """Notes that content was used. Cheap."""

    async def record_blob(self, info: BlobInfo) -> None:
        """Records a new blob."""

    async def record_references(self, references: References, size: int) -> None:
        """Records a manifest of `size` bytes, and what it names."""


class Behind(Protocol):
    """What keeps cached content elsewhere as well, behind the answers. Every call is cheap and raises nothing."""

    def recorded(self, repo: Repo, manifests: Iterable[Digest], granted: Collection[Digest]) -> None:
        """A repository has these manifests, and may serve this content, of which some may not be here."""

    def tag_changed(self, repo: Repo, tag: str) -> None:
        """The record of a tag was written or dropped."""


class Intake:
    """Writes to the store of one process."""

    def __init__(
        self,
        store: BlobStore,
        catalog: Catalog,
        histories: TagHistories,
        grants: Grants,
        index: IndexWriter,
        *,
        executor: Executor | None = None,
        integrity: Integrity | None = None,
        health: StoreHealth | None = None,
        background: BackgroundTasks | None = None,
        behind: Behind | None = None,
    ) -> None:
        """`executor` runs the work that syncs (None: the threads of the event loop). Work in `background` goes on after
        an answer. `behind` keeps content elsewhere as well.
        """
        self.health = health or StoreHealth()
        self.touch = index.touch
        self._store = store
        self._catalog = catalog
        self._histories = histories
        self._grants = grants
        self._index = index
        self._executor = executor
        self._background = BackgroundTasks() if background is None else background
        self._integrity = integrity or Integrity(store, SingleFlight(), self._background)
        self._behind = behind
        self._settling = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<Intake {self.health}, {len(self._background)} tasks behind>"

    async def write(self, work: Callable[..., T], *arguments: object) -> T:
        """Runs blocking work that syncs, in the executor. The few threads that read would all wait for a busy disk."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, *arguments)

    # ------------------------------------------------------------------------------------------------- on the disk

    def put_manifest(
        self, repo: Repo, manifest: Manifest, grants: tuple[Digest, ...] | None = None, fetched_at: float | None = None
    ) -> StoredManifest:
        """Blocking: writes a manifest's bytes, then the repository's record of it. `fetched_at` is in epoch seconds
        (None: now); `grants`: see `ManifestRecord`. Raises `StoreError`.
        """
        self._store.put(manifest.digest, manifest.content)
        return self.link_manifest(repo, manifest, grants, fetched_at)

    def link_manifest(
        self, repo: Repo, manifest: Manifest, grants: tuple[Digest, ...] | None = None, fetched_at: float | None = None
    ) -> StoredManifest:
        """Blocking: like `put_manifest`, for a manifest whose bytes are in the store already."""
        since = self._histories.clocks.later() if fetched_at is None else fetched_at
        record = ManifestRecord(manifest.digest, manifest.media_type, len(manifest.content), since, grants)
        self._catalog.put_manifest(repo, record)
        return StoredManifest(record, manifest)

    async def add_manifest(
        self, repo: Repo, manifest: Manifest, grants: tuple[Digest, ...] | None = None
    ) -> StoredManifest:
        """Like `put_manifest`, in a thread. Raises `StoreError`."""
        stored = await self.write(self.put_manifest, repo, manifest, grants)
        self.health.record_stored()
        return stored

    async def put_tag(self, repo: Repo, was: TagRecord | None, fresh: TagRecord, age: AgeRule) -> Digest | None:
        """Writes upstream's new record of a tag, like `TagHistories.put_tag`. Raises `StoreError`."""
        before = await self.write(self._histories.put_tag, repo, was, fresh, age)
        if self._behind is not None:
            self._behind.tag_changed(repo, fresh.tag)
        return before

    async def drop_tag(self, repo: Repo, tag: str) -> None:
        """Drops the record of a tag that upstream does not have any more. Raises `StoreError`."""
        await asyncio.to_thread(self._catalog.drop_tag, repo, tag)
        if self._behind is not None:
            self._behind.tag_changed(repo, tag)

    async def put_embedded(self, digest: Digest, content: bytes) -> None:
        """Stores a blob whose bytes a manifest embeds. Upstream need not have it (image-spec, "Embedded Content")."""
        try:
            if not await asyncio.to_thread(has_blob, self._store, digest):
                await self.record_blob(await self.write(self._store.put, digest, content))
        except StoreError as error:
            self.health.failed(error, digest)

    def settle(self) -> None:
        """Makes written content durable in the background, after the answer. A busy disk takes seconds for that."""
        self._background.start(self._settle())

    async def _settle(self) -> None:
        try:
            await self.settled()
        except StoreError as error:
            self.health.failed(error, "names of blobs, tags and manifests")

    async def settled(self) -> None:
        """Returns once all that was written before this call is durable. Raises `StoreError`."""
        # one at a time: each also makes durable what was written while it waited
        async with self._settling:
            await self.write(self._store.flush)
            await self.write(self._catalog.flush)

    def record_copy(self, manifest: Manifest) -> None:
        """Notes in the background what a manifest names of which the disk has a copy: the copy of an image is evicted
        as a whole. No repository is granted anything.
        """
        self._background.start(self._index.record_references(References.of(manifest), len(manifest.content)))

    async def aclose(self) -> None:
        """Waits for pending writes to disk and index. Repeatable."""
        await close_all(self._background.finish, self._grants.aclose)

    # --------------------------------------------------------------------------------------- in the index, and grants

    async def record_blob(self, info: BlobInfo) -> None:
        """Notes that a blob was published: its digest is right, and the index must know of it."""
        self._integrity.note_verified(info)
        self.health.recovered()
        await self._background.start_and_wait(self._index.record_blob(info), _PATIENCE)

    async def record_manifests(self, repo: Repo, *stored: StoredManifest) -> None:
        """Notes that the repository has these manifests: records what they name, stores the blobs that they embed, and
        grants their blobs. Content that a manifest names is evicted only with the last manifest that names it.
        """
        granted: dict[Digest, int] = {}
        for each in stored:
            granted |= granted_by(each)
            await self._background.start_and_wait(self._record_references(each.manifest), _PATIENCE)
            await self._put_all_embedded(each.manifest)
        self._keep(repo, stored, granted)
        await self._grants.give(repo, granted)

    async def record_loaded(self, repo: Repo, stored: StoredManifest) -> None:
        """Like `record_manifests`, for a manifest that the disk had before. Nobody waits for the index, which mostly
        knows it already or may be busy with a rebuild: other processes learn the same from the disk.
        """
        granted = granted_by(stored)
        await self._put_all_embedded(stored.manifest)
        self._keep(repo, [stored], granted)
        self._background.start(self._record_references(stored.manifest))
        self._grants.give_later(repo, granted)

    async def _record_references(self, manifest: Manifest) -> None:
        await self._index.record_references(References.of(manifest), len(manifest.content))

    async def _put_all_embedded(self, manifest: Manifest) -> None:
        for blob in manifest.blobs:
            if blob.data is not None:
                await self.put_embedded(blob.digest, blob.data)

    def _keep(self, repo: Repo, stored: Sequence[StoredManifest], granted: Mapping[Digest, int]) -> None:
        if self._behind is not None:
            self._behind.recorded(repo, [each.manifest.digest for each in stored], granted)
