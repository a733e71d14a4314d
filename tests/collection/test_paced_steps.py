"""Steps of long work run in threads, their end included: they may wait for a bucket."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator

from mirror.collection.pace import run_paced


class Lease:
    """A lease that lasts until the test ends it."""

    def __init__(self) -> None:
        self.lost = asyncio.Event()

    def release(self) -> None:
        """See `mirror.ports.Lease`."""


async def test_what_steps_do_at_the_end_is_not_done_on_the_loop() -> None:
    threads = []
    lease = Lease()

    def steps() -> Generator[None]:
        try:
            yield
            yield
        finally:
            threads.append(threading.get_ident())

    async def lose(_: float) -> None:
        lease.lost.set()

    assert not await run_paced(steps(), lease, lose)  # type: ignore[arg-type]
    assert len(threads) == 1
    assert threading.get_ident() not in threads
