"""Does a round of work again and again, some time after the end of the last one of any process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from mirror.collection.grace_clock import CLOCK_SLACK, GraceClock
from mirror.rounds import run_rounds

#: Seconds between two looks at the longest, also if another process does the work, or if it failed. Rounds that are due
#: more often are looked for as often as that, but no more often than `_SHORTEST`.
_LOOK_EVERY: Final = 60.0
_SHORTEST: Final = 1.0


def seconds_left(clock: GraceClock, ended_at: float, every: float) -> float:
    """Returns the seconds until a round is due that comes `every` seconds after the last one, which ended at `ended_at`
    (epoch seconds).
    """
    passed = clock.read().earlier - ended_at
    if passed < -CLOCK_SLACK:
        # a round in the future was dated by a wrong clock
        return 0.0
    # one that has just ended may seem to lie in the future: the end of a round is the later of two clocks
    return every - max(passed, 0.0)


async def run_when_due(
    wait: Callable[[], float],
    run: Callable[[], Awaitable[object | None]],
    *,
    every: float,
    failed: str,
    crashed: str,
    sleep: Callable[[float], Awaitable[None]],
) -> None:
    """Does the rounds that are due, until it is cancelled. `wait` blocks: it returns the seconds until the next round.
    `run` returns None if another process is at it, which is then looked for again, as after an error: `every` seconds
    later, but not after more than a minute. `failed` and `crashed`: see `run_rounds`.
    """
    pause = min(max(every, _SHORTEST), _LOOK_EVERY)

    async def run_if_due() -> float:
        seconds = await asyncio.to_thread(wait)
        if seconds <= 0 and await run() is None:
            return pause
        # not all the time at once: another process may do the next round
        return min(max(seconds, 0.0), _LOOK_EVERY)

    await run_rounds(run_if_due, pause, failed=failed, crashed=crashed, sleep=sleep)
