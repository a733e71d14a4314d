"""Time in which tasks sleep until a test lets it pass."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class SteppedTime:
    """A clock in seconds, and a `sleep` by it."""

    def __init__(self) -> None:
        self.now = 0.0
        self._sleeping: list[tuple[float, asyncio.Event]] = []

    def __call__(self) -> float:
        return self.now

    @property
    def sleeping(self) -> int:
        """How many tasks sleep."""
        return len(self._sleeping)

    async def sleep(self, seconds: float) -> None:
        """Until so much time was let pass."""
        entry = self.now + seconds, asyncio.Event()
        self._sleeping.append(entry)
        try:
            await entry[1].wait()
        finally:
            self._sleeping.remove(entry)

    async def go_on(self, until: Callable[[], bool]) -> None:
        """Let time pass, from one awakening to the next, until something is so that tasks and threads bring about."""
        async with asyncio.timeout(30):
            while not until():
                if self._sleeping:
                    due, event = min(self._sleeping, key=lambda entry: entry[0])
                    self.now = max(self.now, due)
                    event.set()
                await asyncio.sleep(0.001)
