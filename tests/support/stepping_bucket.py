"""A bucket in which something happens at the n-th call, whichever verb it is.

bucket.stop_at(3, error)               the third call from now on is not made, and raises the error
bucket.stop_at(3, error, done=True)    it is made, and its answer is lost
bucket.stop_at(3, error, late=True)    the same, but if it changes something, `arrive` makes it
bucket.act_at(3, act)                  `act` is called before it, as if by another process
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mirror.errors import RecordChanged
from mirror.ports import Expected, Version
from tests.support.memory_bucket import MemoryBucket


class Killed(BaseException):
    """The process ends here."""


@dataclass(frozen=True)
class _Stop:
    error: BaseException
    done: bool
    late: bool


class _OnItsWay(BaseException):
    """A request has left, and arrives later."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


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
        self._late: list[Callable[[], object]] = []
        #: Only calls that change something are steps.
        self.counts_changes = False

    def stop_at(self, step: int, error: BaseException, *, done: bool = False, late: bool = False) -> None:
        """See above."""
        self._left, self._what = step, _Stop(error, done, late)

    def act_at(self, step: int, act: Callable[[], None]) -> None:
        """See above. It may call `stop_at`, whose step 0 is the call before which it was made."""
        self._left, self._what = step, act

    @property
    def reached(self) -> bool:
        """True if the step came. Nothing happens any more."""
        reached = self._what is None
        self._what = None
        return reached

    def arrive(self) -> None:
        """Make what is late. Whoever sent it hears nothing of it."""
        while self._late:
            with suppress(RecordChanged):
                self._late.pop()()

    def write(self, key: str, content: bytes, *, expect: Expected = None) -> Version:
        try:
            return super().write(key, content, expect=expect)
        except _OnItsWay as late:
            self._late.append(partial(self.write, key, content, expect=expect))
            raise late.error from None

    def upload(self, key: str, file: Path, size: int) -> None:
        try:
            super().upload(key, file, size)
        except _OnItsWay as late:
            self._late.append(partial(self.write, key, file.read_bytes()))
            raise late.error from None

    def delete(self, keys: Sequence[str]) -> None:
        try:
            super().delete(keys)
        except _OnItsWay as late:
            self._late.append(partial(self.delete, list(keys)))
            raise late.error from None

    def _begin(self, verb: str, *keys: str) -> object:  # type: ignore[override]
        is_change = verb in ("write", "upload", "delete")
        is_step = is_change or not self.counts_changes
        self._left -= is_step
        what = self._what if is_step and self._left == 0 else None
        if what is not None:
            self._what = None
        if callable(what):
            what()
            what = None
            if self._left == 0 and isinstance(self._what, _Stop):
                # it has stopped the call before which it was made
                what, self._what = self._what, None
        if what is not None and what.late and is_change:
            self.deleted.update(keys if verb == "delete" else ())
            raise _OnItsWay(what.error)
        if what is not None and not what.done:
            raise what.error
        if verb == "delete":
            self.deleted.update(keys)
        fault = super()._begin(verb, *keys)
        return fault if what is None else what
