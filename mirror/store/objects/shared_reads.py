"""Reads of one key that share a call: all that ask while a call waits to begin.

    ask ── nobody asks for this key ──> the call begins ──> its result
      └─── a call is under way ──> the next call, which begins after it, for all who ask until then

A call that has begun is never shared with somebody who asks later: it may have been answered before.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class _Call(Generic[T]):
    def __init__(self) -> None:
        self.over = threading.Event()
        self.result: list[T] = []
        self.error: BaseException | None = None


class SharedReads(Generic[T]):
    """One for all threads of a process."""

    def __init__(self) -> None:
        self._changing = threading.Lock()
        #: By key: the call that is under way, and the one that waits for its end, if there is one.
        self._calls: dict[str, tuple[_Call[T], _Call[T] | None]] = {}
        #: Threads that wait for a call of another one to end or to begin.
        self.waiting = 0

    def __repr__(self) -> str:
        return f"<SharedReads {len(self._calls)} under way>"

    def ask(self, key: str, read: Callable[[], T]) -> T:
        """The result of a `read` that begins after this call. Raises what it raises."""
        with self._changing:
            calls = self._calls.get(key)
            if calls is None:
                before, mine = None, _Call[T]()
                self._calls[key] = mine, None
            elif calls[1] is None:
                before, mine = calls[0], _Call[T]()
                self._calls[key] = before, mine
            else:
                before = mine = calls[1]
            self.waiting += before is not None
        if before is not None:
            before.over.wait()
            with self._changing:
                self.waiting -= 1
        if before is not mine:
            return self._carry_out(key, mine, read)
        if mine.error is not None:
            raise mine.error
        return mine.result[0]

    def _carry_out(self, key: str, call: _Call[T], read: Callable[[], T]) -> T:
        with self._changing:
            # from here on, whoever asks waits for the next call
            self._calls[key] = call, None
        try:
            result = read()
            call.result.append(result)
            return result
        except BaseException as error:
            call.error = error
            raise
        finally:
            with self._changing:
                if self._calls[key][1] is None:
                    del self._calls[key]
            call.over.set()
