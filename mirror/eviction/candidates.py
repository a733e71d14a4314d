"""Finds the victims of an eviction: in the index, or by a walk over the disk if there is no usable index.

Both ways fill the same plan in the same order: first stale loose blobs, then images and young loose blobs by last use.
A loose blob is one that no manifest here names. The index needs a few look-ups for each victim, whatever the number of
blobs; a walk reads every manifest and the metadata of every blob.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from math import inf
from typing import Final

from mirror.errors import BlobUnknown
from mirror.graph.references import ReferenceReader
from mirror.oci.digest import Digest
from mirror.policy.eviction import EvictionPlan, Victim, coldest_enough, in_order, is_stale
from mirror.policy.records import BlobRole, ContentRecord, ReferencedBlob, References
from mirror.ports import Blobs, ContentIndex

#: The number of candidates requested at first, and the factor by which it grows while they are not enough.
_FIRST_CANDIDATES: Final = 64
_MORE: Final = 4
#: Images whose content is requested in one call.
_IMAGES: Final = 16


async def from_index(
    index: ContentIndex, size: int, spared: Collection[Digest], now: float, most: int | None = None
) -> tuple[list[Victim], bool]:
    """Returns victims that free `size` bytes, none of them `spared`, and whether there are no other candidates.

    The victims may be too few if more would mean to read more than `most` candidates. `now` is in epoch seconds. Raises
    `IndexUnavailable`.
    """
    limit = _FIRST_CANDIDATES if most is None else min(_FIRST_CANDIDATES, most)
    below: dict[Digest, list[ReferencedBlob]] = {}
    while True:
        plan = EvictionPlan(size, spared, now)
        loose = await index.least_recently_used(BlobRole.LOOSE, limit)
        stale = [record for record in loose if is_stale(record, now)]
        for record in stale:
            plan.take_loose(record)
        roots: list[ContentRecord] = []
        # if more stale blobs may follow, they come before all images
        if not plan.enough and not len(loose) == len(stale) == limit:
            roots = await index.least_recently_used(BlobRole.ROOT, limit)
            horizon = min((each[-1].last_used for each in (loose, roots) if len(each) == limit), default=inf)
            rest = iter(in_order(loose[len(stale) :], roots, horizon))
            while not plan.enough and (some := list(islice(rest, _IMAGES))):
                wanted = [record.digest for record, is_image in some if is_image and record.digest not in spared]
                below |= await _all_below(index, [digest for digest in wanted if digest not in below])
                for record, is_image in some:
                    if is_image:
                        plan.take_image(record, below)
                    else:
                        plan.take_loose(record)
        exhausted = len(loose) < limit and len(roots) < limit
        if exhausted or plan.enough or limit == most:
            return plan.victims, exhausted
        limit = limit * _MORE if most is None else min(limit * _MORE, most)


async def _all_below(index: ContentIndex, manifests: Sequence[Digest]) -> dict[Digest, list[ReferencedBlob]]:
    """Returns what each of these manifests and each manifest below them names."""
    content: dict[Digest, list[ReferencedBlob]] = {}
    pending = list(manifests)
    while pending:
        level = await index.successors(pending)
        content |= level
        children = (child.record.digest for named in level.values() for child in named if child.is_manifest)
        pending = list({child: None for child in children if child not in content})
    return content


def from_disk(
    store: Blobs,
    references: ReferenceReader,
    size: int,
    spared: Collection[Digest],
    touches: Mapping[Digest, float],
    now: float,
) -> tuple[list[Victim], bool]:
    """Blocking: like `from_index`, with the times of use from the disk and from `touches`, which the disk may lack.

    Keeps in memory what all manifests name, but of other blobs only the victims. Raises `StoreError`, also if a
    manifest cannot be read: the blobs that it names would look loose.
    """
    manifests = references.everywhere()
    parents = Counter(child for each in manifests.values() for child in {*each.manifests, *each.blobs})
    records: dict[Digest, ContentRecord] = {}

    def loose() -> Iterator[ContentRecord]:
        for info in store.walk():
            record = ContentRecord(info.digest, info.size, max(info.used_at, touches.get(info.digest, 0.0)))
            if info.digest in manifests:
                records[info.digest] = record
            elif info.digest not in parents:
                yield record

    blobs = coldest_enough(loose(), size, spared)
    images = _Images(store, manifests, parents, records)
    plan = EvictionPlan(size, spared, now)
    stale = [record for record in blobs if is_stale(record, now)]
    for record in stale:
        plan.take_loose(record)
    roots = images.roots()
    for record, is_image in in_order(blobs[len(stale) :], roots):
        if plan.enough:
            break
        if is_image:
            plan.take_image(record, images.below(record.digest))
        else:
            plan.take_loose(record)
    return plan.victims, not plan.enough


class _Images:
    """The images on the disk and what they consist of."""

    def __init__(
        self,
        store: Blobs,
        manifests: Mapping[Digest, References],
        parents: Mapping[Digest, int],
        records: Mapping[Digest, ContentRecord],
    ) -> None:
        self._store = store
        self._manifests = manifests
        self._parents = parents
        self._records = records

    def roots(self) -> list[ContentRecord]:
        """Returns the manifests that no other manifest names, least recently used first. A use of a manifest below
        counts as one of its root.
        """
        roots = [
            ContentRecord(digest, record.size, max(self._records[each].last_used for each in self._with_below(digest)))
            for digest, record in self._records.items()
            if digest not in self._parents
        ]
        return sorted(roots, key=lambda record: (record.last_used, record.digest))

    def below(self, root: Digest) -> dict[Digest, list[ReferencedBlob]]:
        """Returns what the root, and each manifest below it, names, as far as that is here."""
        return {digest: list(self._children(digest)) for digest in self._with_below(root)}

    def _children(self, manifest: Digest) -> Iterator[ReferencedBlob]:
        references = self._manifests[manifest]
        for digest in dict.fromkeys((*references.manifests, *references.blobs)):
            record = self._records.get(digest) or self._stat(digest)
            if record is not None:
                yield ReferencedBlob(record, self._parents[digest], digest in self._records)

    def _stat(self, digest: Digest) -> ContentRecord | None:
        try:
            info = self._store.stat(digest)
        except BlobUnknown:
            return None
        return ContentRecord(digest, info.size, info.used_at)

    def _with_below(self, root: Digest) -> list[Digest]:
        """Returns `root` and the manifests below it that are here, `root` first."""
        manifests, pending = [root], [root]
        while pending:
            for child in self._manifests[pending.pop()].manifests:
                if child in self._records and child not in manifests:
                    manifests.append(child)
                    pending.append(child)
        return manifests
