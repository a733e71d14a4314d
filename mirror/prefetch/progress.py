"""The progress of a prefetch, for each digest and in total. Jobs, syncs and progress bars show it."""

from __future__ import annotations

from typing import Annotated, Final, NotRequired

from typing_extensions import TypedDict

from mirror.oci.digest import Digest
from mirror.policy.image_names import Image
from mirror.prefetch.pulling import BlobProgress, State
from mirror.values.json_types import Bytes, Count, about

#: How many of the blobs under way are listed. Blobs that wait for their turn count as under way, too.
_MOST_LISTED: Final = 100


class DigestCountsJson(TypedDict):
    """Numbers of digests."""

    seen: Annotated[Count, about("Number of digests found so far; it grows while manifests are read.")]
    here: Annotated[Count, about("Those that were cached before.")]
    fetched: Count
    failed: Count


class DigestProgressJson(TypedDict):
    """A manifest or blob that is being fetched, or waits for that."""

    digest: str
    role: str
    received: Bytes
    size: Bytes | None


class ProgressJson(TypedDict):
    """The progress of a prefetch."""

    images: Count
    digests: DigestCountsJson
    received: Bytes
    size: Annotated[Bytes, about("Bytes of all digests found so far.")]
    under_way: Annotated[NotRequired[list[DigestProgressJson]], about("At most 100; not in a list of jobs.")]


class ProgressMeter:
    """Collects what `prefetch` reports. Used on one event loop."""

    def __init__(self) -> None:
        self.images = 0
        #: Set by code that cancels the work on purpose, before it cancels; not set if the process ends.
        self.cancelled = False
        self._seen: dict[Digest, BlobProgress] = {}

    def expect(self, images: int) -> None:
        """Set the number of images that will be prefetched."""
        self.images = images

    def note(self, _image: Image, progress: BlobProgress) -> None:
        """Take a report of `prefetch`. A digest that several images name counts once."""
        before = self._seen.get(progress.digest)
        if before is None or before.state is None or progress.state is State.FETCHED:
            self._seen[progress.digest] = progress

    def __repr__(self) -> str:
        return f"<ProgressMeter {len(self._seen)} digests of {self.images} images>"

    @property
    def received(self) -> int:
        """How many bytes of all digests seen so far are here."""
        return sum(blob.received for blob in self._seen.values())

    @property
    def size(self) -> int:
        """How many bytes all digests seen so far will have; this grows while manifests are read."""
        return sum(max(blob.size or 0, blob.received) for blob in self._seen.values())

    def to_json(self) -> ProgressJson:
        """The totals, and the digests under way, at most `_MOST_LISTED` of them. All sizes are in bytes."""
        under_way = [blob for blob in self._seen.values() if blob.state is None]
        ended = [blob.state for blob in self._seen.values() if blob.state is not None]
        return {
            "images": self.images,
            "digests": {
                "seen": len(self._seen),
                "here": ended.count(State.HERE),
                "fetched": ended.count(State.FETCHED),
                "failed": ended.count(State.FAILED),
            },
            "received": self.received,
            "size": self.size,
            "under_way": [
                {"digest": str(blob.digest), "role": blob.role.value, "received": blob.received, "size": blob.size}
                for blob in under_way[:_MOST_LISTED]
            ],
        }
