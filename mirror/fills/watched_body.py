"""A body that is watched from the event loop while a thread reads it, and that can be left."""

from __future__ import annotations

from mirror.errors import UpstreamError, UpstreamTimeout
from mirror.ports import Body, SaysStop, SupportsSplice


class WatchedBody:
    """See `Body`, `SaysStop` and `SupportsSplice`."""

    def __init__(self, body: Body, source: str) -> None:
        """`source` is the name of what sends the body, for errors."""
        self._body = body
        self._source = source
        # to compare an object with a protocol takes long, and each piece would
        self._splices = body if isinstance(body, SupportsSplice) else None
        self._left = ""
        self.start: int = body.start
        self.size: int | None = body.size
        #: The bytes so far, and whether a thread waits for more.
        self.received = 0
        self.is_awaited = False

    def __repr__(self) -> str:
        return f"<WatchedBody from {self._source}, {self.received} bytes{' left' if self._left else ''}>"

    def readinto(self, buffer: memoryview) -> int:
        self.is_awaited = True
        try:
            received = self._body.readinto(buffer)
        except UpstreamError as error:
            if self._left:
                raise UpstreamTimeout(self._left, upstream=self._source) from error
            raise
        finally:
            self.is_awaited = False
        self.received += received
        return received

    def plain_socket(self) -> tuple[int, int] | None:
        """See `SupportsSplice`."""
        offered = self._splices.plain_socket() if self._splices is not None else None
        self.is_awaited = offered is not None
        return offered

    def advance(self, count: int) -> None:
        """See `SupportsSplice`."""
        self.is_awaited = False
        if self._splices is not None:
            self._splices.advance(count)
        self.received += count

    @property
    def stop(self) -> int | None:
        """See `SaysStop`."""
        return self._body.stop if isinstance(self._body, SaysStop) else None

    def abort(self) -> None:
        self._body.abort()

    def leave(self, reason: str) -> None:
        """End the body: the thread that reads it gets `UpstreamTimeout` with this reason."""
        self._left = reason
        self.abort()
