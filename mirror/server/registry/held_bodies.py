"""The bodies of requests that are received into memory, such as manifests, limited together: clients that send slowly
must not hold any amount of it.

    begun ── a piece has come ──> grows ──┬── whole, or broken off ──────────────────────> left
                                          └── all together have too many bytes ──> the longest one is dropped ("memory")
"""

from __future__ import annotations

from typing import Final, Protocol

#: Most bytes of bodies that are being received, in one process. Manifests of some kilobytes arrive at once.
_MOST: Final = 128 << 20


class Sending(Protocol):
    """A connection whose client is sending a body."""

    def drop(self, reason: str) -> None:
        """End the connection at once."""


class HeldBodies:
    """The bodies of one process, in the order in which they began."""

    def __init__(self, most: int = _MOST) -> None:
        """`most` is in bytes."""
        self._most = most
        self._sizes: dict[Sending, int] = {}
        self.size = 0

    def __repr__(self) -> str:
        return f"<HeldBodies {len(self._sizes)} bodies, {self.size} of {self._most} bytes>"

    def grow(self, connection: Sending, count: int) -> None:
        """The body of this connection has so many more bytes. Drops connections whose bodies began before all others,
        while all bodies together are too large.
        """
        self._sizes[connection] = self._sizes.get(connection, 0) + count
        self.size += count
        while self.size > self._most and (longest := next(iter(self._sizes))) is not connection:
            self.leave(longest)
            longest.drop("memory")

    def leave(self, connection: Sending) -> None:
        """The body of this connection is received no more. Repeatable."""
        self.size -= self._sizes.pop(connection, 0)
