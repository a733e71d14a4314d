"""How far the clock of this machine is from that of the bucket, which is the same for all replicas.

Waiting times of hosted content are judged by moments that any replica may have written. So a replica whose clock is
wrong does no work for all: it would take what was written an hour ago for a day old, or the other way round.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

from mirror.clock import steady_time
from mirror.errors import BucketUnavailable
from mirror.ports import ObjectReader, ObjectWriter
from mirror.telemetry import BUCKET_CLOCK_OFFSET, log

_CLOCKS: Final = "leases/clocks/"
#: Seconds by which the clocks may differ. Stores give whole seconds.
TOLERANCE: Final = 30.0
#: Seconds by which they may differ for a replica that records when something was pushed or deleted.
_TOO_WRONG: Final = 300.0
#: Seconds for which a comparison counts.
_COUNTS_FOR: Final = 300.0


class ClockObjects(ObjectReader, ObjectWriter, Protocol):
    """What a comparison needs of a bucket."""


class BucketClock:
    """Compares the clocks, and remembers the result for a while. May be used from any thread."""

    def __init__(
        self,
        bucket: ClockObjects,
        replica: str,
        *,
        now: Callable[[], float] = time.time,
        steady: Callable[[], float] = steady_time,
    ) -> None:
        """`replica` is this one's name. `now` is the clock that is compared, in epoch seconds; `steady` cannot be
        set.
        """
        self._bucket = bucket
        self._key = f"{_CLOCKS}{hashlib.blake2b(replica.encode(), digest_size=8).hexdigest()}"
        self._now = now
        self._steady = steady
        self._comparing = threading.Lock()
        #: When the clocks were compared, by the steady clock; the offset; and what the wall clock was ahead of the
        #: steady one.
        self._compared: tuple[float, float, float] | None = None

    def __repr__(self) -> str:
        return f"<BucketClock {'not compared' if self._compared is None else f'off by {self._compared[1]:.0f} s'}>"

    @property
    def offset(self) -> float | None:
        """By how many seconds this clock was ahead when they were compared last; None: they were not. Quick."""
        compared = self._compared
        return None if compared is None else compared[1]

    def compare(self) -> float:
        """Blocking: by how many seconds this clock is ahead now. Raises `StoreError`."""
        before, steady = self._now(), self._steady()
        self._bucket.write(self._key, b"the time")
        after = self._now()
        found = self._bucket.head(self._key)
        if found is None:
            raise BucketUnavailable("the bucket does not have what was just written")
        # somewhere between the two; the store may cut off parts of a second
        ahead = before - (found.changed_at + 1.0) if before > found.changed_at + 1.0 else 0.0
        behind = found.changed_at - after if found.changed_at > after else 0.0
        offset = ahead - behind
        self._compared = steady, offset, before - steady
        BUCKET_CLOCK_OFFSET.set(offset)
        return offset

    def check(self) -> None:
        """Blocking: raises `StoreError` if the clock differs too much from the bucket's, or if nobody can say."""
        with self._comparing:
            compared = self._compared
            offset = compared[1] if compared is not None and self._counts(compared) else self.compare()
        if abs(offset) > TOLERANCE:
            log.warning("clock differs from that of the bucket", seconds=round(offset))
            raise BucketUnavailable(
                f"the clock of this replica is {abs(offset):.0f} seconds {'ahead of' if offset > 0 else 'behind'} that "
                "of the bucket: it does no work for all replicas until its clock is right",
                retry_after=60.0,
            )

    def check_moments(self) -> None:
        """Raises `StoreError` if, by the last comparison, moments that this replica records would be so wrong that
        others would judge them wrongly. Quick.
        """
        if (offset := self.offset) is not None and abs(offset) > _TOO_WRONG:
            raise BucketUnavailable(
                f"the clock of this replica is {abs(offset):.0f} seconds {'ahead of' if offset > 0 else 'behind'} that "
                "of the bucket: pushes and deletions would be dated wrongly",
                retry_after=60.0,
            )

    def _counts(self, compared: tuple[float, float, float]) -> bool:
        """Whether the comparison is not too old, was right, and the clock was not set since."""
        at, offset, ahead = compared
        now, steady = self._now(), self._steady()
        was_set = abs(now - steady - ahead) > 1.0
        return 0 <= steady - at < _COUNTS_FOR and abs(offset) <= TOLERANCE and not was_set
