"""How the parent process learns that a worker has started."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from mirror.process.supervisor import answer_of
from tests.support.live_mirror import until


async def test_a_worker_answers_or_ends_before() -> None:
    """A byte, or the end of its pipe."""
    for sent, expected in ((b"1", True), (b"", False)):
        reading, writing = os.pipe()
        answer = answer_of(reading)
        os.write(writing, sent)
        os.close(writing)
        assert await answer is expected


async def test_nobody_waits_any_more_for_the_worker() -> None:
    """As when the mirror is stopped while it starts: what comes then is no error, and the pipe is closed."""
    errors: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    reading, writing = os.pipe()
    answer_of(reading).cancel()
    os.write(writing, b"1")

    def is_closed() -> bool | None:
        try:
            os.fstat(reading)
        except OSError:
            return True
        return None

    await until(is_closed)
    os.close(writing)
    assert errors == []
