"""An event loop without threads and without time, whose order is drawn: the same draws give the same run.

    run_in_executor ──> waiting jobs ── the dice choose one ──> runs on the loop, to its end
    call_later, sleep, timeout ──> when nothing else is left to do, the clock jumps there

Work that real threads would do at once is done one after the other, in every order that real threads could take.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Executor
from random import Random
from typing import Any, TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class _Skipping(selectors.SelectSelector):
    """Waits for nothing: time passes instead."""

    def __init__(self) -> None:
        super().__init__()
        self.moment = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise AssertionError("every task waits for another one")
        self.moment += max(0.0, timeout)
        return super().select(0)


class ScriptedLoop(asyncio.SelectorEventLoop):
    """`dice` chooses which of the waiting jobs runs next."""

    def __init__(self, dice: Random) -> None:
        self._skipping = _Skipping()
        self._waiting: list[Callable[[], None]] = []
        self._dice = dice
        super().__init__(self._skipping)

    def time(self) -> float:
        """Seconds that have passed in this loop."""
        return self._skipping.moment

    def run_in_executor(self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts) -> asyncio.Future[T]:
        """The job waits until the dice choose it."""
        future: asyncio.Future[T] = self.create_future()

        def run() -> None:
            try:
                result = func(*args)
            except BaseException as error:
                if not future.cancelled():
                    future.set_exception(error)
            else:
                if not future.cancelled():
                    future.set_result(result)

        self._waiting.append(run)
        self.call_soon(self._run_one)
        return future

    def _run_one(self) -> None:
        chosen = self._dice.randrange(len(self._waiting)) if len(self._waiting) > 1 else 0
        self._waiting.pop(chosen)()

    def run_all(self, operations: Sequence[Coroutine[Any, Any, T]]) -> list[T | BaseException]:
        """The results of operations that run side by side, and the end of every task that they have begun."""

        async def together() -> list[T | BaseException]:
            results = await asyncio.gather(*operations, return_exceptions=True)
            while left := asyncio.all_tasks() - {asyncio.current_task()}:
                await asyncio.wait(left)
            return results

        return self.run_until_complete(together())
