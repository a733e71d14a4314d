"""The bodies of requests that are received into memory, such as manifests, limited together: clients that send slowly,
or many at once, must not hold any amount of it.

    begun ── a piece has come ──> grows ──┬── whole ──> kept until it is worked on ──> left
                                          ├── broken off ────────────────────────────> left
                                          └── all together are too large ──┬── the longest is dropped ("memory")
                                                                           └── it is the longest ──> `TooManyUploads`
"""

from __future__ import annotations

from typing import Final, Protocol

from mirror.errors import TooManyUploads

#: Most bytes of bodies in memory, in one process. Manifests of some kilobytes arrive at once.
_MOST: Final = 128 << 20


class Sending(Protocol):
    """A connection whose client is sending a body."""

    def drop(self, reason: str) -> None:
        """End the connection at once."""


class HeldBodies:
    """The bodies of one process."""

    def __init__(self, most: int = _MOST) -> None:
        """`most` is in bytes."""
        self._most = most
        #: Bodies that are still coming, in the order in which they began, and those that are whole, with their sizes.
        self._coming: dict[Sending, int] = {}
        self._whole: dict[Sending, int] = {}
        self.size = 0

    def __repr__(self) -> str:
        bodies = f"{len(self._coming)} coming, {len(self._whole)} whole"
        return f"<HeldBodies {bodies}, {self.size} of {self._most} bytes>"

    def grow(self, connection: Sending, count: int) -> None:
        """The body of this connection has so many more bytes. While all bodies together are too large, drops the
        connections whose bodies began before this one. Raises `TooManyUploads` if there are none, and others are whole.
        """
        self._coming[connection] = self._coming.get(connection, 0) + count
        self.size += count
        while self.size > self._most and (longest := next(iter(self._coming))) is not connection:
            self.leave(longest)
            longest.drop("memory")
        if self.size > self._most and self._whole:
            raise TooManyUploads("too many manifests are being pushed at this moment")

    def arrived(self, connection: Sending) -> None:
        """The body of this connection is whole; it stays in memory until `leave`."""
        self._whole[connection] = self._coming.pop(connection, 0)

    def leave(self, connection: Sending) -> None:
        """The body of this connection is in memory no more. Repeatable."""
        self.size -= self._coming.pop(connection, 0) + self._whole.pop(connection, 0)
