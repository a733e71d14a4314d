"""Records requests for content that sealed repositories do not have, without delaying the answers.

    missed ──> in memory, bounded, one record for each image or blob
                  └── every few seconds, and at the end ──> blobs are replaced by the images that name them
                         └── under a lock over all processes ──> the report on disk

A crash loses the misses of the last few seconds. If the disk cannot be written, they stay in memory and are tried
again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial
from typing import Final, Protocol

from mirror import telemetry
from mirror.aio.caches import LruCache, TtlCache
from mirror.aio.cancellation import raise_if_cancelled
from mirror.errors import BlobUnknown, StoreError
from mirror.graph.closure import shown_closure
from mirror.graph.manifests import for_display
from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor
from mirror.oci.reference import Reference, Repo
from mirror.policy.image_misses import Miss
from mirror.ports import Blobs, BlobStore, Catalog

#: Records that wait in memory; the least recent ones are dropped.
_MOST: Final = 10_000
#: The pause between two batches: at least so many seconds, and at least so many times as long as the last batch took.
_EVERY: Final = 2.0
_REST: Final = 20.0
#: Images that are reported for one missing blob: a base layer may belong to hundreds.
_MOST_IMAGES: Final = 16
#: Missing blobs of which the images that name them are remembered, and for how many seconds.
_MOST_NAMING: Final = 2000
_NAMING_FOR: Final = 60.0


class MissRecords(Protocol):
    """The report on disk. Blocking."""

    def add(self, misses: Iterable[Miss]) -> None:
        """Adds misses to the report. Raises `StoreError`."""


class Misses:
    """The misses of one process."""

    def __init__(
        self,
        report: MissRecords,
        store: BlobStore,
        catalog: Catalog,
        *,
        exclusive: Callable[[], AbstractAsyncContextManager[object]],
        now: Callable[[], float] = time.time,
    ) -> None:
        """`exclusive` is the report's own lock over all processes that share the store. `now` is in epoch seconds."""
        self._report = report
        self._store = store
        self._catalog = catalog
        self._exclusive = exclusive
        self._now = now
        self._images: LruCache[Hashable, Miss] = LruCache(_MOST, name="missing images")
        self._blobs: LruCache[Hashable, Miss] = LruCache(_MOST, name="missing blobs")
        self._naming: TtlCache[tuple[Repo, Digest], list[Reference]] = TtlCache(
            _MOST_NAMING, _NAMING_FOR, name="images by missing blob"
        )
        self._some = asyncio.Event()
        self._closing = asyncio.Event()
        self._flushing = asyncio.Lock()
        self._failed = False

    def __repr__(self) -> str:
        return f"<Misses {len(self._images)} images, {len(self._blobs)} blobs waiting>"

    # ------------------------------------------------------------------------------------- on the hot path

    def manifest(self, repo: Repo, reference: Reference) -> None:
        """Records a missing manifest."""
        telemetry.SEALED_MISSES.labels("manifest").inc()
        now = self._now()
        self._note(self._images, Miss(repo, reference, now, now))

    def blob(self, repo: Repo, digest: Digest, *, named: bool) -> None:
        """Records a missing blob. `named` is True if a manifest of the repository names the blob."""
        telemetry.SEALED_MISSES.labels("blob").inc()
        now = self._now()
        miss = Miss(repo, None, now, now, blobs=(digest,))
        if named:
            self._note(self._blobs, miss, (repo, digest))
        else:
            self._note(self._images, miss)

    def repository(self) -> None:
        """Counts a request for tags or referrers of a repository without content here. There is no image to report."""
        telemetry.SEALED_MISSES.labels("tags").inc()

    def _note(self, waiting: LruCache[Hashable, Miss], miss: Miss, key: Hashable = None) -> None:
        _merge(waiting, key or miss.key, miss)
        self._some.set()

    # ------------------------------------------------------------------------------------- off the hot path

    async def run(self) -> None:
        """Writes batches until `aclose`, with a pause after each that limits the cost."""
        while not self._closing.is_set():
            await self._some.wait()
            began = time.monotonic()
            try:
                await self.flush()
            except (Exception, asyncio.CancelledError) as error:
                raise_if_cancelled(error)
                # go on after any error: without this task no further miss would be written
                telemetry.log.exception("miss report crashed")
            rest = max(_EVERY, _REST * (time.monotonic() - began))
            try:
                async with asyncio.timeout(rest):
                    await self._closing.wait()
            except TimeoutError:
                continue

    async def flush(self) -> None:
        """Writes all waiting records. If the disk cannot be written, they go on waiting."""
        async with self._flushing:
            await self._flush()

    async def _flush(self) -> None:
        self._some.clear()
        images, self._images = self._images, LruCache(_MOST, name="missing images")
        blobs, self._blobs = self._blobs, LruCache(_MOST, name="missing blobs")
        if not images and not blobs:
            return
        try:
            named = await asyncio.to_thread(self._by_image, list(blobs.values()))
            async with self._exclusive():
                await asyncio.to_thread(self._report.add, [*images.values(), *named])
        except StoreError as error:
            self._put_back(images, blobs)
            if not self._failed:
                telemetry.log.warning("miss report cannot be written", reason=str(error))
            self._failed = True
        else:
            self._failed = False

    def _put_back(self, images: Mapping[Hashable, Miss], blobs: Mapping[Hashable, Miss]) -> None:
        for unwritten, waiting in ((images, self._images), (blobs, self._blobs)):
            for key, miss in unwritten.items():
                if len(waiting) < _MOST:
                    _merge(waiting, key, miss)
        self._some.set()

    def _by_image(self, blobs: Iterable[Miss]) -> list[Miss]:
        """Blocking: returns the same misses, each with the images that name its blob."""
        by_repo: dict[Repo, list[Miss]] = {}
        for miss in blobs:
            by_repo.setdefault(miss.repo, []).append(miss)
        by_image: list[Miss] = []
        for repo, misses in by_repo.items():
            images = self._images_of(repo, [miss.blobs[0] for miss in misses])
            for miss in misses:
                references = images.get(miss.blobs[0]) or (None,)
                by_image.extend(replace(miss, reference=reference) for reference in references)
        return by_image

    def _images_of(self, repo: Repo, digests: Iterable[Digest]) -> dict[Digest, list[Reference]]:
        images = {digest: self._naming.get((repo, digest)) for digest in digests}
        if unknown := [digest for digest, references in images.items() if references is None]:
            naming = images_naming(self._store, self._catalog, repo, unknown)
            for digest in unknown:
                images[digest] = self._naming[repo, digest] = naming.get(digest, [])[:_MOST_IMAGES]
        return {digest: references or [] for digest, references in images.items()}

    async def aclose(self) -> None:
        """Ends `run` and writes the waiting records. Repeatable."""
        self._closing.set()
        self._some.set()
        await self.flush()


def _merge(waiting: LruCache[Hashable, Miss], key: Hashable, miss: Miss) -> None:
    before = waiting.get(key)
    waiting[key] = before.and_(miss) if before else miss


def images_naming(
    store: Blobs, catalog: Catalog, repo: Repo, digests: Iterable[Digest]
) -> dict[Digest, list[Reference]]:
    """Blocking: returns, for each digest, the images of the repository that contain it, by tag if they have one.

    The most recently used images come first. Unreadable records are left out, because the result is only displayed.
    Raises `StoreError` if tags or manifests cannot be listed.
    """
    wanted = set(digests)
    naming: dict[Digest, list[tuple[float, Reference]]] = {}
    tagged: set[Digest] = set()

    def search(root: Descriptor, reference: Reference, *, roots_only: bool) -> None:
        closure = shown_closure(store, catalog, repo, root)
        for node in closure.nodes:
            if node.digest in wanted and not (roots_only and node.digest in tagged):
                naming.setdefault(node.digest, []).append((_used_at(store, root.digest), reference))

    for tag in catalog.tags(repo):
        record = for_display(partial(catalog.get_tag, repo, tag), f"{repo}:{tag}")
        if record:
            search(record.descriptor, tag, roots_only=False)
    tagged = set(naming)
    if wanted - tagged:
        for listed in catalog.manifest_digests(repo):
            manifest = for_display(partial(catalog.get_manifest, repo, listed), f"{repo}@{listed}")
            if manifest is None:
                continue
            search(manifest.descriptor, manifest.digest, roots_only=True)
    return {
        digest: [reference for _, reference in sorted(images, key=lambda image: (-image[0], str(image[1])))]
        for digest, images in naming.items()
    }


def _used_at(store: Blobs, digest: Digest) -> float:
    try:
        return store.stat(digest).used_at
    except (BlobUnknown, StoreError):
        # the time only decides the order of the list
        return 0.0
