"""Work that is cancelled at its first await, then at its second, and so on until it ends before it is cancelled.

    rounds = await cancelled_everywhere("Flights._run", scenario)

In each round the first task whose coroutine has this name is cancelled at one of its awaits, as `Task.cancel` does it:
the awaited future is cancelled, and the cancellation comes out of the await. `scenario` must end in every case, and
checks itself what is left. `Baseline` says what may be left: no more tasks, descriptors and files than before.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import suppress
from typing import Any

from tests.support.live_mirror import until

#: Ends of idle connections beyond those that there were.
_KEPT = 4
#: More awaits than any of the tried things has.
_ENOUGH = 2000


class _Steps:
    """A coroutine that counts its awaits, and is cancelled at one of them."""

    def __init__(self, work: Coroutine[Any, Any, Any], at: int) -> None:
        self._work = work
        self._at = at
        self.reached = False

    def __await__(self) -> Generator[Any, Any, Any]:
        step = 0
        value, thrown = None, None
        while True:
            try:
                waits_for = self._work.throw(thrown) if thrown else self._work.send(value)
            except StopIteration as end:
                return end.value
            if step == self._at:
                task = asyncio.current_task()
                assert task
                self.reached = True
                task.cancel()
            step += 1
            value, thrown = None, None
            try:
                value = yield waits_for
            except BaseException as error:
                thrown = error


async def _stepping(steps: _Steps) -> Any:
    return await steps


async def cancelled_everywhere(name: str, scenario: Callable[[], Awaitable[None]]) -> int:
    """How many awaits there were. `name` is the end of the coroutine's qualified name."""
    loop = asyncio.get_running_loop()
    before = loop.get_task_factory()
    try:
        for at in range(_ENOUGH):
            chosen: list[_Steps] = []

            def make(
                loop: asyncio.AbstractEventLoop, work: Any, chosen: list[_Steps] = chosen, at: int = at, **more: Any
            ) -> Any:
                if not chosen and getattr(work, "__qualname__", "").endswith(name):
                    chosen.append(_Steps(work, at))
                    work = _stepping(chosen[0])
                return asyncio.Task(work, loop=loop, **more)

            loop.set_task_factory(make)
            await scenario()
            loop.set_task_factory(before)
            assert chosen, f"no task ran {name}"
            if not chosen[0].reached:
                return at
    finally:
        loop.set_task_factory(before)
    raise AssertionError(f"{name} has no end")


async def ends_slowly(may_end: asyncio.Event) -> None:
    """Goes on until it is cancelled, and then until it may end, however often it is cancelled."""
    try:
        await asyncio.Event().wait()
    finally:
        while not may_end.is_set():
            with suppress(asyncio.CancelledError):
                await may_end.wait()


async def cancelled_again_and_again(task: asyncio.Task[Any], may_end: asyncio.Event) -> None:
    """Cancels a task several times before what it waits for may end, as `cancel_and_wait` does. Returns once it has
    ended.
    """
    for _ in range(3):
        for _ in range(5):
            await asyncio.sleep(0)
        task.cancel()
    for _ in range(5):
        await asyncio.sleep(0)
    assert not task.done()
    may_end.set()
    await asyncio.wait({task})
    assert task.cancelled()


class Baseline:
    """Tasks and descriptors of this process as they are now."""

    def __init__(self) -> None:
        self._tasks = len(asyncio.all_tasks())
        self._sockets, self._others = _counted()

    async def reached(self) -> None:
        """Returns once there are no more than before; both ends of one idle connection to an upstream may stay open."""
        await until(self._is_reached, self._told)

    def _is_reached(self) -> bool:
        sockets, others = _counted()
        tasks = len(asyncio.all_tasks())
        return tasks <= self._tasks and others <= self._others and sockets <= self._sockets + _KEPT

    def _told(self) -> str:
        tasks = [repr(task) for task in asyncio.all_tasks()]
        wanted = f"{self._tasks} tasks, {self._sockets} sockets, {self._others} other descriptors before"
        return f"{wanted}; now {tasks} and {_descriptors()}"


def _counted() -> tuple[int, int]:
    found = _descriptors()
    sockets = sum(one.startswith("socket:") for one in found)
    return sockets, len(found) - sockets


def _descriptors() -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:
            continue  # that of listing
    return found
