"""The content of an object, read piece by piece.

    opened ──> reading ──┬──> read to its end
                 ^       ├──> broken off: asked again from the next byte on, if it is still the same object, a few times
                 └───────┤
                         └──> failed, aborted

obstore would go on by itself after a break, without a look at whether the object is still the same: so its own
repetitions are off, and are made here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from mirror import telemetry
from mirror.errors import BucketUnavailable, UpstreamInvalid, UpstreamTimeout, UpstreamUnavailable
from mirror.store.cloud.obstore_errors import Kind, failure_of

if TYPE_CHECKING:
    from obstore import GetResult

#: Bytes of one piece, at least: smaller ones take more CPU time, larger ones more memory.
_PIECE: Final = 1 << 20
#: How often reading goes on after a break without one byte in between.
_RETRIES: Final = 3


class ObstoreBody:
    """See `mirror.ports.Body`. `abort` takes effect with the next piece, or when the read time-out is over."""

    def __init__(
        self,
        name: str,
        key: str,
        result: GetResult | None,
        start: int,
        size: int,
        again: Callable[[int], GetResult | None],
        *,
        stop: int | None = None,
    ) -> None:
        """`result` is the answer that begins at `start`, None if nothing is left. `again` asks for the rest from a byte
        on; None if the object is gone. `size` is that of the whole object, `stop` where the body ends (None: with it).
        """
        self.start = start
        self.size: int | None = size
        self._name = name
        self._key = key
        self._whole = size
        self._stop = size if stop is None else min(stop, size)
        self._position = start
        self._again = again
        self._e_tag = result.meta["e_tag"] if result is not None else None
        self._pieces: Iterator[bytes] = iter(()) if result is None else iter(result.stream(_PIECE))
        self._piece = memoryview(b"")
        self._breaks = 0
        self._aborted = False

    def __repr__(self) -> str:
        return f"<ObstoreBody {self._key} {self._position}/{self._stop}>"

    def readinto(self, buffer: memoryview) -> int:
        while not self._piece:
            if self._aborted:
                self._pieces = iter(())
                raise UpstreamUnavailable("the body was aborted", upstream=self._name)
            if not self._next():
                return 0
        count = min(len(buffer), len(self._piece))
        buffer[:count] = self._piece[:count]
        self._piece = self._piece[count:]
        return count

    def abort(self) -> None:
        self._aborted = True
        self._piece = memoryview(b"")

    def _next(self) -> bool:
        """Get the next piece; False at the end of the object."""
        try:
            piece = next(self._pieces, None)
        except Exception as error:
            failure = failure_of(error)
            self._resume(failure.reason, stalled=failure.kind is Kind.TIMEOUT)
            return True
        if piece is None:
            if self._position < self._stop:
                self._resume(f"it ended after {self._position} of {self._stop} bytes", stalled=False)
                return True
            return False
        if self._position + len(piece) > self._stop:
            raise UpstreamInvalid(f"{self._key} has more than its {self._stop} bytes", upstream=self._name)
        self._breaks = 0
        self._position += len(piece)
        self._piece = memoryview(piece)
        telemetry.BUCKET_BYTES.labels("read").inc(len(piece))
        return True

    def _resume(self, reason: str, *, stalled: bool) -> None:
        """Ask again from the next byte on. Raises if that was tried too often, or if it is another object now."""
        self._breaks += 1
        telemetry.BUCKET_REQUESTS.labels("read", "broken off").inc()
        if self._aborted or self._breaks > _RETRIES:
            kind = UpstreamTimeout if stalled else UpstreamUnavailable
            raise kind(f"{self._key} broke off: {reason}", upstream=self._name)
        try:
            result = self._again(self._position)
        except BucketUnavailable as error:
            raise UpstreamUnavailable(f"{self._key} broke off: {error}", upstream=self._name) from error
        if result is None or result.meta["size"] != self._whole or result.meta["e_tag"] != self._e_tag:
            raise UpstreamInvalid(f"{self._key} changed while it was read", upstream=self._name)
        self._pieces = iter(result.stream(_PIECE))
