"""The progress of a prefetch, for each digest and in total. Jobs, syncs and progress bars show it."""

from __future__ import annotations

from typing import Any, Final

from mirror.oci.digest import Digest
from mirror.policy.image_names import Image
from mirror.prefetch.pulling import Progress, State

#: How many of the blobs under way are listed. Blobs that wait for their turn count as under way, too.
_TOLD: Final = 100


class ProgressMeter:
    """Collects what `prefetch` reports. Used on one event loop."""

    def __init__(self) -> None:
        self.images = 0
        #: Set by code that cancels the work on purpose, before it cancels; not set if the process ends.
        self.called_off = False
        self._seen: dict[Digest, Progress] = {}

    def expect(self, images: int) -> None:
        """Set the number of images that will be prefetched."""
        self.images = images

    def note(self, _image: Image, progress: Progress) -> None:
        """Take a report of `prefetch`. A digest that several images name counts once."""
        known = self._seen.get(progress.digest)
        if known is None or known.state is None or progress.state is State.FETCHED:
            self._seen[progress.digest] = progress

    @property
    def received(self) -> int:
        """How many bytes of all digests seen so far are here."""
        return sum(one.received for one in self._seen.values())

    @property
    def size(self) -> int:
        """How many bytes all digests seen so far will have; this grows while manifests are read."""
        return sum(max(one.size or 0, one.received) for one in self._seen.values())

    def to_json(self) -> dict[str, Any]:
        """The totals, and the digests under way, at most `_TOLD` of them. All sizes are in bytes."""
        under_way = [one for one in self._seen.values() if one.state is None]
        ended = [one.state for one in self._seen.values() if one.state is not None]
        return {
            "images": self.images,
            "digests": {"seen": len(self._seen), **{state.value: ended.count(state) for state in State}},
            "received": self.received,
            "size": self.size,
            "under_way": [
                {"digest": str(one.digest), "role": one.role.value, "received": one.received, "size": one.size}
                for one in under_way[:_TOLD]
            ],
        }
