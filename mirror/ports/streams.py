"""Bytes from upstream."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


class Body(Protocol):
    """The body of one upstream answer, read by blocking calls in a thread, never in the event loop."""

    @property
    def start(self) -> int:
        """Offset within the blob of the first byte that `readinto` gives."""

    @property
    def size(self) -> int | None:
        """Size in bytes of the whole blob, not of the rest from `start` on; None if upstream does not state it."""

    def readinto(self, buffer: memoryview) -> int:
        """Block until bytes arrive, write them to `buffer` and return their number: at least 1, or 0 at a proper end.

        May fill only a part of the buffer. Raises `UpstreamUnavailable` if the body breaks off, and `UpstreamTimeout`
        if it stalls or falls below the lowest rate allowed.
        """

    def abort(self) -> None:
        """Make a blocked `readinto` fail soon. May be called from any thread, and repeatedly."""


@runtime_checkable
class SaysStop(Protocol):
    """A body that says where it ends, which need not be where it was asked to end."""

    @property
    def stop(self) -> int | None:
        """The offset within the blob at which the body ends; None if that is not known before."""


@runtime_checkable
class SaysThrottled(Protocol):
    """The whole of a blob that may have come in place of a part, because the upstream wants fewer requests."""

    @property
    def throttled(self) -> float | None:
        """Seconds for which the upstream wanted to be left alone when it refused the part; None if that was not so."""


@runtime_checkable
class SaysWaiting(Protocol):
    """A body that says how much of it has arrived already, which shows whether its sender or its reader is slower."""

    def waiting(self) -> int:
        """Bytes that have arrived and were not read yet, at least. From any thread; quick."""


@runtime_checkable
class SupportsSplice(Protocol):
    """A body that can lend its socket, so that the kernel moves its bytes."""

    def plain_socket(self) -> tuple[int, int] | None:
        """The descriptor of a blocking socket, and how many bytes of the body to take from it.

        None if the next bytes are available from `readinto` alone. The answer changes while the body is read: the bytes
        that arrived together with the headers come first, by `readinto`.
        """

    def advance(self, count: int) -> None:
        """Record that `count` bytes were taken from the socket. Raises like `readinto`."""
