"""Keys in a bucket that no state names any more, and that are deleted together.

add() ──> waits for `life` seconds, and for others ── free() ──> deleted
            └── the process ends ──> the sweep deletes it
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from mirror import telemetry
from mirror.errors import StoreError
from mirror.ports import ObjectDeleter

#: Keys that are deleted in one call: as many as S3 takes.
_AT_ONCE: Final = 1000
#: Keys that wait at most while the bucket deletes nothing. The sweep finds the others.
_MOST: Final = 20_000


class CollectedKeys:
    """The keys that one process has to delete. May be used from any thread."""

    def __init__(
        self,
        bucket: ObjectDeleter,
        *,
        life: float = 0.0,
        at_once: int = _AT_ONCE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`life` is for how many seconds a client may still read what it was redirected to."""
        self._bucket = bucket
        self._life = life
        self._at_once = at_once
        self._clock = clock
        #: When each may be deleted, and the key, the oldest first.
        self._waiting: deque[tuple[float, str]] = deque(maxlen=_MOST)
        self._changing = threading.Lock()

    def __repr__(self) -> str:
        return f"<CollectedKeys {len(self._waiting)} to delete>"

    def add(self, key: str) -> None:
        """Delete a key some time later. Raises nothing."""
        with self._changing:
            self._waiting.append((self._clock() + self._life, key))
            enough = len(self._waiting) % self._at_once == 0
        if enough:
            self.free()

    def free(self, *, at_once: bool = False) -> int:
        """Delete the keys that have waited long enough, or all of them (`at_once`). Returns how many of these could not
        be deleted; they are tried again in the next call. Raises nothing.
        """
        now = self._clock()
        due: list[tuple[float, str]] = []
        with self._changing:
            while self._waiting and (at_once or self._waiting[0][0] <= now):
                due.append(self._waiting.popleft())
        if not due:
            return 0
        try:
            self._bucket.delete([key for _, key in due])
        except StoreError as error:
            telemetry.log.warning("collected objects not deleted", objects=len(due), reason=str(error))
            with self._changing:
                self._waiting.extendleft(reversed(due))
            return len(due)
        return 0
