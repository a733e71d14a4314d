"""A bucket in which something happens at the n-th call, whichever verb it is.

bucket.stop_at(3, error)               the third call from now on is not made, and raises the error
bucket.stop_at(3, error, done=True)    it is made, and its answer is lost
bucket.act_at(3, act)                  `act` is called before it, as if by another process
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.support.memory_bucket import MemoryBucket


class Killed(BaseException):
    """The process ends here."""


@dataclass(frozen=True)
class _Stop:
    error: BaseException
    done: bool


class SteppingBucket(MemoryBucket):
    """See above. The number of a step counts from the last `stop_at` or `act_at`."""

    def __init__(self) -> None:
        #: The clock of the store, in epoch seconds.
        self.time = 1_000_000_000.0
        super().__init__(now=lambda: self.time)
        self._left = 0
        self._what: _Stop | Callable[[], None] | None = None
        #: Keys that were deleted, and may be at any time again.
        self.deleted: set[str] = set()

    def stop_at(self, step: int, error: BaseException, *, done: bool = False) -> None:
        """See above."""
        self._left, self._what = step, _Stop(error, done)

    def act_at(self, step: int, act: Callable[[], None]) -> None:
        """See above."""
        self._left, self._what = step, act

    @property
    def reached(self) -> bool:
        """True if the step came. Nothing happens any more."""
        reached = self._what is None
        self._what = None
        return reached

    def _begin(self, verb: str, *keys: str) -> object:  # type: ignore[override]
        self._left -= 1
        what = self._what if self._left == 0 else None
        if what is not None:
            self._what = None
        if isinstance(what, _Stop) and not what.done:
            raise what.error
        if callable(what):
            what()
        if verb == "delete":
            self.deleted.update(keys)
        fault = super()._begin(verb, *keys)
        return what if isinstance(what, _Stop) else fault
