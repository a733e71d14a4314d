"""What this process remembers of all repositories. Any entry may disappear at any time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mirror.aio.caches import CountedLru, LruCache
from mirror.aio.singleflight import SingleFlight
from mirror.graph.described import Described
from mirror.graph.referrers import ReferrerScan
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest
from mirror.oci.reference import Repo
from mirror.policy.history import TagOverride
from mirror.policy.records import Freeze, TagRecord
from mirror.ports import BlobStore, Catalog
from mirror.repository.answers import Outcome
from mirror.repository.tag_windows import TagWindows

#: Seconds until the disk is checked again for a tag's record, or for a manifest that is in memory.
LOOK_EVERY = 2.0


@dataclass(frozen=True, slots=True)
class CachedTag:
    """A tag's record, how it was obtained, and from when until when (epoch seconds) it is believed.

    `override` is the reason if the tag is answered with another digest than upstream's.
    """

    record: TagRecord
    outcome: Outcome
    since: float
    until: float
    override: TagOverride | None = None

    @classmethod
    def frozen(cls, freeze: Freeze, now: float) -> CachedTag:
        """Returns the answer of a frozen tag."""
        # time 0: this did not come from upstream, so it is older than any record that did
        record = TagRecord(freeze.tag, freeze.digest, freeze.media_type, freeze.size, 0.0)
        return cls(record, Outcome.HIT, now, now + LOOK_EVERY, TagOverride.FROZEN)


class Caches:
    """The caches of one process."""

    def __init__(
        self, store: BlobStore, catalog: Catalog, lists: TagWindows, now: Callable[[], float] = time.time
    ) -> None:
        """`lists` are the tag lists of upstreams. `now` is in epoch seconds."""
        self.now = now
        self.lists = lists
        #: Reads of the disk and questions to upstreams that are under way.
        self.once = SingleFlight()
        self.tags: CountedLru[tuple[Repo, str], CachedTag] = CountedLru(16 << 20, lambda _: 512, name="tags")
        self.manifests: CountedLru[tuple[Repo, Digest], Manifest] = CountedLru(64 << 20, weight, name="manifests")
        #: When the disk was last checked for a manifest that is in memory (epoch seconds).
        self.checked: LruCache[Digest, float] = LruCache(4 << 20, lambda _: 256, name="checked manifests")
        self.described = Described(store, catalog, self.once)
        self.referrers = ReferrerScan(store, catalog, self.once, now)

    def __repr__(self) -> str:
        return f"<Caches {len(self.tags)} tags, {len(self.manifests)} manifests>"

    def forget(self, repo: Repo, tags: Iterable[str], digests: Iterable[Digest]) -> None:
        """Drops purged tags and manifests."""
        for tag in tags:
            self.tags.pop((repo, tag), None)
        for digest in digests:
            self.manifests.pop((repo, digest), None)


def weight(manifest: Manifest) -> int:
    """Returns roughly the bytes of memory that a manifest takes: each descriptor is some objects and a digest."""
    return 2 * len(manifest.content) + 800 * (len(manifest.manifests) + len(manifest.blobs)) + 1024
