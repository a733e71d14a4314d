"""Locks between tasks, taken only if they are free."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager


class FreeLocks:
    """As `try_hold` of `mirror.ports.Locks`, in one process. `taken` are the names in the order in which they were
    taken.
    """

    def __init__(self) -> None:
        self.held: set[str] = set()
        self.taken: list[str] = []

    async def try_hold(self, name: str) -> AbstractContextManager[None] | None:
        """The lock, until the end of the `with`; None if it is held."""
        if name in self.held:
            return None
        self.held.add(name)
        self.taken.append(name)
        return self._held(name)

    @contextmanager
    def _held(self, name: str) -> Iterator[None]:
        try:
            yield
        finally:
            self.held.remove(name)
