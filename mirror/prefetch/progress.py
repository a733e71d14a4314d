"""How far a list of images is, digest by digest and in all, for whoever looks: a job, a sync, a progress bar."""

from __future__ import annotations

from typing import Any, Final

from mirror.oci.digest import Digest
from mirror.policy.image_names import Image
from mirror.prefetch.pulling import Progress, State

__all__ = ["ProgressMeter"]

#: Blobs under way that are told one by one. There are as many as are let through at once.
_TOLD: Final = 100


class ProgressMeter:
    """Filled by `prefetch`'s `report`, on one event loop."""

    def __init__(self) -> None:
        self.images = 0
        #: Whoever cancels the work on purpose, rather than because the process ends, says so here first.
        self.called_off = False
        self._seen: dict[Digest, Progress] = {}

    def expect(self, images: int) -> None:
        """So many images it will be."""
        self.images = images

    def note(self, _image: Image, progress: Progress) -> None:
        """What `prefetch` reports. A digest that several images name counts once."""
        known = self._seen.get(progress.digest)
        if known is None or known.state is None or progress.state is State.FETCHED:
            self._seen[progress.digest] = progress

    @property
    def received(self) -> int:
        """Bytes that are here, of all digests seen so far."""
        return sum(one.received for one in self._seen.values())

    @property
    def size(self) -> int:
        """Bytes that all digests seen so far will have; grows while manifests are read."""
        return sum(max(one.size or 0, one.received) for one in self._seen.values())

    def to_json(self) -> dict[str, Any]:
        """Totals, and each digest that is under way. All sizes are bytes."""
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
