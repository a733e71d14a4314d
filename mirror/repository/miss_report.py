"""Takes note of what sealed repositories do not have, off the path of the answers.

    missed ──> in memory, bounded, one record for each image or blob
                  └── every few seconds, and at the end ──> blobs become the images that name them
                         └── under a lock over all processes ──> the report on disk

A crash loses the last few seconds. Where the disk does not take it, it is kept in memory and tried again.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial
from typing import Final, Protocol

from mirror import telemetry
from mirror.aio.latest import put_latest
from mirror.aio.lru import LruCache
from mirror.errors import BlobUnknown, StoreError
from mirror.graph.closure import shown_closure
from mirror.graph.manifests import for_display
from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor
from mirror.oci.reference import Reference, Repo
from mirror.policy.misses import Miss
from mirror.ports import BlobStore, Catalog

__all__ = ["Misses", "images_naming"]

#: Records that wait in memory; the least recent ones leave.
_MOST: Final = 10_000
#: Seconds between two batches, and how many times as long as writing one took.
_EVERY: Final = 2.0
_REST: Final = 20.0
#: Images that are told for one missing blob: a base layer may belong to hundreds.
_MOST_IMAGES: Final = 16
#: Seconds that what was found out about a missing blob stands.
_KNOWN_FOR: Final = 60.0


class MissRecords(Protocol):
    """Where misses are kept. Blocking."""

    def add(self, misses: Iterable[Miss]) -> None:
        """Raises `StoreError`."""


class Misses:
    """Of one process."""

    def __init__(
        self,
        report: MissRecords,
        store: BlobStore,
        catalog: Catalog,
        *,
        exclusive: Callable[[], AbstractAsyncContextManager[object]],
        now: Callable[[], float] = time.time,
    ) -> None:
        """`exclusive` holds a lock over all processes of this store, for the report alone."""
        self._report = report
        self._store = store
        self._catalog = catalog
        self._exclusive = exclusive
        self._now = now
        self._images: OrderedDict[Hashable, Miss] = OrderedDict()
        self._blobs: OrderedDict[Hashable, Miss] = OrderedDict()
        self._naming: LruCache[tuple[Repo, Digest], tuple[float, list[Reference]]] = LruCache(4 << 20, lambda _: 2048)
        self._some = asyncio.Event()
        self._closing = asyncio.Event()
        self._flushing = asyncio.Lock()
        self._failed = False

    # ------------------------------------------------------------------------------------- on the hot path

    def manifest(self, repo: Repo, reference: Reference) -> None:
        """No such manifest is here."""
        telemetry.SEALED_MISSES.labels("manifest").inc()
        now = self._now()
        self._note(self._images, Miss(repo, reference, now, now))

    def blob(self, repo: Repo, digest: Digest, *, named: bool) -> None:
        """No such blob is here; `named`: a manifest of the repository names it."""
        telemetry.SEALED_MISSES.labels("blob").inc()
        now = self._now()
        miss = Miss(repo, None, now, now, blobs=(digest,))
        if named:
            self._note(self._blobs, miss, (repo, digest))
        else:
            self._note(self._images, miss)

    def repository(self) -> None:
        """Nothing of a repository is here: only counted, because a list of tags is no image."""
        telemetry.SEALED_MISSES.labels("tags").inc()

    def _note(self, waiting: OrderedDict[Hashable, Miss], miss: Miss, key: Hashable = None) -> None:
        key = key or miss.key
        known = waiting.get(key)
        put_latest(waiting, key, known.and_(miss) if known else miss, _MOST)
        self._some.set()

    # -------------------------------------------------------------------------------------------- off it

    async def run(self) -> None:
        """Write batches until `aclose`, with a rest after each that bounds what this costs."""
        while not self._closing.is_set():
            await self._some.wait()
            began = time.monotonic()
            try:
                await self.flush()
            except Exception:
                # whatever it was: without this task no miss is ever written down again
                telemetry.log.exception("writing misses crashed")
            rest = max(_EVERY, _REST * (time.monotonic() - began))
            try:
                async with asyncio.timeout(rest):
                    await self._closing.wait()
            except TimeoutError:
                continue

    async def flush(self) -> None:
        """Write what waits, if anything. What the disk does not take waits on."""
        async with self._flushing:
            await self._flush()

    async def _flush(self) -> None:
        self._some.clear()
        images, self._images = self._images, OrderedDict()
        blobs, self._blobs = self._blobs, OrderedDict()
        if not images and not blobs:
            return
        try:
            named = await asyncio.to_thread(self._by_image, list(blobs.values()))
            async with self._exclusive():
                await asyncio.to_thread(self._report.add, [*images.values(), *named])
        except StoreError as error:
            self._put_back(images, blobs)
            if not self._failed:
                telemetry.log.warning("misses cannot be written down", reason=str(error))
            self._failed = True
        else:
            self._failed = False

    def _put_back(self, images: Mapping[Hashable, Miss], blobs: Mapping[Hashable, Miss]) -> None:
        for kept, fresh in ((images, self._images), (blobs, self._blobs)):
            for key, miss in kept.items():
                if len(fresh) < _MOST:
                    known = fresh.get(key)
                    fresh[key] = known.and_(miss) if known else miss
        self._some.set()

    def _by_image(self, blobs: Iterable[Miss]) -> list[Miss]:
        """Blocking: the same misses, told of the images that name these blobs."""
        asked: dict[Repo, list[Miss]] = {}
        for miss in blobs:
            asked.setdefault(miss.repo, []).append(miss)
        found: list[Miss] = []
        for repo, misses in asked.items():
            images = self._images_of(repo, [miss.blobs[0] for miss in misses])
            for miss in misses:
                references = images.get(miss.blobs[0]) or (None,)
                found.extend(replace(miss, reference=reference) for reference in references)
        return found

    def _images_of(self, repo: Repo, digests: Iterable[Digest]) -> dict[Digest, list[Reference]]:
        known: dict[Digest, list[Reference]] = {}
        asked = []
        for digest in digests:
            read = self._naming.get((repo, digest))
            if read and time.monotonic() < read[0] + _KNOWN_FOR:
                known[digest] = read[1]
            else:
                asked.append(digest)
        if asked:
            fresh = images_naming(self._store, self._catalog, repo, asked)
            for digest in asked:
                known[digest] = fresh.get(digest, [])[:_MOST_IMAGES]
                self._naming.put((repo, digest), (time.monotonic(), known[digest]))
        return known

    async def aclose(self) -> None:
        """Ends `run` and writes what waits. Repeatable."""
        self._closing.set()
        self._some.set()
        await self.flush()


def images_naming(
    store: BlobStore, catalog: Catalog, repo: Repo, digests: Iterable[Digest]
) -> dict[Digest, list[Reference]]:
    """Blocking: the images of a repository that consist of these blobs among others, by tag where they have one.

    Those that were used last come first; what cannot be read is left out, for this is only shown. Raises `StoreError`
    if something cannot be listed.
    """
    wanted = set(digests)
    found: dict[Digest, list[tuple[float, Reference]]] = {}
    tagged: set[Digest] = set()

    def look(root: Descriptor, reference: Reference, *, roots_only: bool) -> None:
        closure = shown_closure(store, catalog, repo, root)
        for node in closure.nodes:
            if node.digest in wanted and not (roots_only and node.digest in tagged):
                found.setdefault(node.digest, []).append((_used_at(store, root.digest), reference))

    for tag in catalog.tags(repo):
        record = for_display(partial(catalog.get_tag, repo, tag), f"{repo}:{tag}")
        if record:
            look(Descriptor(record.media_type, record.digest, record.size), tag, roots_only=False)
    tagged = set(found)
    if wanted - tagged:
        for listed in catalog.manifest_digests(repo):
            manifest = for_display(partial(catalog.get_manifest, repo, listed), f"{repo}@{listed}")
            if manifest is None:
                continue
            root = Descriptor(manifest.media_type, manifest.digest, manifest.size)
            look(root, manifest.digest, roots_only=True)
    return {
        digest: [reference for _, reference in sorted(images, key=lambda image: (-image[0], str(image[1])))]
        for digest, images in found.items()
    }


def _used_at(store: BlobStore, digest: Digest) -> float:
    try:
        return store.stat(digest).used_at
    except (BlobUnknown, StoreError):
        # it only says where in the list
        return 0.0
