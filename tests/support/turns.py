"""Threads that take turns: one runs at a time, and the dice choose which. The same draws give the same run.

    run_all ── the dice choose a thread ──> it runs up to one of its next calls of `take`, or to its end ──┐
                       ^                                                                                   │
                       └───────────────────────────────────────────────────────────────────────────────────┘

Parts that several threads use are wrapped by `taking_turns`: each call of such a part is a turn, and so is each item of
a list that it returns, because a folder is not read in one moment.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any, Final, TypeVar

T = TypeVar("T")

#: How many calls a thread makes in a row.
_BURSTS: Final = (0, 0, 0, 1, 3, 10, 40)


class Killed(BaseException):
    """The thread does nothing any more, as after `kill -9`."""


class _Worker:
    def __init__(self) -> None:
        self.may_go = threading.Semaphore(0)
        #: The calls that it still lives for; None: any number.
        self.lives: int | None = None
        self.result: Any = None


class Turns:
    """Runs operations side by side."""

    def __init__(self, dice: Random) -> None:
        self._dice = dice
        self._workers: dict[int, _Worker] = {}
        self._stopped = threading.Semaphore(0)
        self._burst = 0

    def take(self) -> None:
        """Perhaps lets another thread run. Does nothing in a thread that `run_all` did not begin."""
        worker = self._workers.get(threading.get_ident())
        if worker is None:
            return
        if worker.lives is not None:
            if not worker.lives:
                raise Killed
            worker.lives -= 1
        if self._burst:
            self._burst -= 1
            return
        self._stopped.release()
        worker.may_go.acquire()

    def die_after(self, calls: int) -> None:
        """Kills the calling thread at the next call of a part after so many."""
        self._workers[threading.get_ident()].lives = calls

    def run_all(self, operations: Sequence[Callable[[], T]]) -> list[T | BaseException]:
        """The results of operations that run side by side, or their errors."""
        workers = [_Worker() for _ in operations]
        threads = [
            threading.Thread(target=self._run, args=(worker, operation), daemon=True)
            for worker, operation in zip(workers, operations, strict=True)
        ]
        for thread in threads:
            thread.start()
        running = list(zip(workers, threads, strict=True))
        while running:
            chosen = self._dice.choice(running)
            self._burst = self._dice.choice(_BURSTS)
            chosen[0].may_go.release()
            self._stopped.acquire()
            if chosen[0].result is not None:
                chosen[1].join()
                running.remove(chosen)
        return [worker.result[0] for worker in workers]

    def _run(self, worker: _Worker, operation: Callable[[], Any]) -> None:
        worker.may_go.acquire()
        self._workers[threading.get_ident()] = worker
        try:
            result = operation()
        except BaseException as error:
            result = error
        del self._workers[threading.get_ident()]
        worker.result = (result,)
        self._stopped.release()


class _Port:
    def __init__(self, real: Any, take: Callable[[], None]) -> None:
        self._real = real
        self._take = take

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)
        if not callable(found):
            return found

        def call(*arguments: Any, **named: Any) -> Any:
            self._take()
            result = found(*arguments, **named)
            return self._one_by_one(result) if isinstance(result, list) and name != "blobs" else result

        return call

    def _one_by_one(self, items: list[Any]) -> Iterator[Any]:
        for item in items:
            self._take()
            yield item


def taking_turns(port: T, turns: Turns) -> T:
    """The port, each of whose calls is a turn."""
    return _Port(port, turns.take)  # type: ignore[return-value]  # it has whatever the port has
