"""Room in the store for bytes that are about to come."""

from __future__ import annotations

from typing import Protocol


class ReservedSpace(Protocol):
    """Disk space that is reserved for a fill."""

    def release(self) -> None:
        """Gives the space back. Repeatable."""


class Room(Protocol):
    """The room of the store, as a fill uses it (`eviction/space.py`)."""

    async def reserve(self, size: int | None) -> ReservedSpace:
        """Reserves `size` bytes (None: unknown), evicting if needed. Raises `StoreFull`."""

    async def make_room(self, size: int) -> None:
        """Evicts at least `size` bytes after a write failed because the disk was full. Raises `StoreFull`."""
