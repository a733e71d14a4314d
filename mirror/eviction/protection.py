"""What must not be dropped at the moment, gathered from everything that protects content.

    fills, uploads, open reads of this process ── add() ────────┐
                                                                ├── at(now) ──> digests that stay
    pins and freezes, read from the disk ── add_on_disk() ──────┘

Whatever protects content registers here when it is built. So the evictor needs none of it, and may be built first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from mirror.oci.digest import Digest


class Protection:
    """The digests that must not be dropped, one instance in each process that drops content."""

    def __init__(self) -> None:
        self._in_process: list[Callable[[], Collection[Digest]]] = []
        self._on_disk: list[Callable[[float], Collection[Digest]]] = []

    def __repr__(self) -> str:
        return f"<Protection in_process={len(self._in_process)} on_disk={len(self._on_disk)}>"

    def add(self, digests: Callable[[], Collection[Digest]]) -> None:
        """Registers what this process uses, such as its fills. `digests` is called on the event loop, so it must be
        quick.
        """
        self._in_process.append(digests)

    def add_on_disk(self, digests: Callable[[float], Collection[Digest]]) -> None:
        """Registers what the disk says must stay, such as pins. `digests` is called in a thread with the time (epoch
        seconds); it raises `StoreError` if it is not known what must stay.
        """
        self._on_disk.append(digests)

    def in_process(self) -> set[Digest]:
        """Returns what this process uses now."""
        return {digest for digests in self._in_process for digest in digests()}

    async def at(self, now: float) -> set[Digest]:
        """Returns everything that must stay. Raises `StoreError` if that is not known; then nothing may be dropped."""
        stored = await asyncio.to_thread(lambda: {digest for digests in self._on_disk for digest in digests(now)})
        # read last: a fill may have begun while the disk was read
        return stored | self.in_process()
