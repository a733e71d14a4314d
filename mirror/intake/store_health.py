"""Whether the store takes content at the moment. While it does not, pulls go on without it."""

from __future__ import annotations

import time
from collections.abc import Callable

from mirror import telemetry
from mirror.errors import BlobTooLarge, StoreError, StoreFull


class StoreHealth:
    """What this process has seen of the store: one line in the log when it begins to fail, one when it recovers.

    good ── something is refused ──> failing ── a blob is stored, or a record if the store was not full ──> good

    A record is small: a store that has no room for blobs still takes records, and is not good because of that.
    """

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        """`now` is in epoch seconds."""
        self._now = now
        self._failing_since: float | None = None
        self._is_full = False

    def __repr__(self) -> str:
        return f"<StoreHealth {'good' if self._failing_since is None else f'failing since {self._failing_since:.0f}'}>"

    @property
    def is_failing(self) -> bool:
        """True if the last attempt to store something failed."""
        return self._failing_since is not None

    def failed(self, error: StoreError, what: object) -> None:
        """Counts and logs that the store could not take something. A failing store is logged once, until it takes
        content again; a blob that is larger than the store is logged each time.
        """
        telemetry.UNCACHED.inc()
        if isinstance(error, BlobTooLarge):
            # the store is not failing, and will never take this blob
            telemetry.log.warning("blob larger than store", blob=str(what), reason=str(error))
            return
        # also if it fails for another reason as well: a record then proves too little
        self._is_full |= isinstance(error, StoreFull)
        if self._failing_since is None:
            self._failing_since = self._now()
            telemetry.STORE_FAILING.inc()
            telemetry.log.error("store failed", first=str(what), reason=str(error))

    def record_stored(self) -> None:
        """Notes that the store has taken a record of a few hundred bytes."""
        if not self._is_full:
            self.recovered()

    def recovered(self) -> None:
        """Notes that the store has taken a blob: it is no longer failing."""
        if self._failing_since is not None:
            telemetry.log.info("store recovered", uncached_since=self._failing_since)
            telemetry.STORE_FAILING.dec()
            self._failing_since, self._is_full = None, False
