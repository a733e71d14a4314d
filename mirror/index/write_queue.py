"""Writes of several threads that share transactions, because one transaction costs as much as many.

write() ── queued ──> whoever has the turn carries out all that is queued ──> each has its result, or its error
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from mirror.errors import MirrorError

T = TypeVar("T")


class QueuedWrite(Generic[T]):
    """Work that waits for a transaction; `synced` asks for one that survives a power cut."""

    def __init__(self, work: Callable[[sqlite3.Connection], T], error: MirrorError, *, synced: bool) -> None:
        """`error` is how the work ends unless `done` or `fail` is called."""
        self.work = work
        self.synced = synced
        self.is_over = False
        self._result: list[T] = []
        self._error = error

    def __repr__(self) -> str:
        return f"<QueuedWrite {'over' if self.is_over else 'waiting'}>"

    def done(self, result: T) -> None:
        """To be called when the transaction is committed."""
        self._result = [result]

    def fail(self, error: MirrorError) -> None:
        """To be called when nothing was changed."""
        self._error = error

    def outcome(self) -> T:
        """The result of the work. Raises its error."""
        if not self._result:
            raise self._error
        return self._result[0]


class WriteQueue:
    """What waits for a transaction. May be used from any thread."""

    def __init__(
        self, carry_out: Callable[[Sequence[QueuedWrite[Any]]], None], interrupted: Callable[[], MirrorError]
    ) -> None:
        """`carry_out` does the work of all in transactions, in one thread at a time, and says how each ended. What it
        leaves open, because it was itself interrupted, fails with `interrupted`.
        """
        self._carry_out = carry_out
        self._interrupted = interrupted
        #: Whoever has it carries out all that waits.
        self.turn = threading.Lock()
        self._queueing = threading.Lock()
        self._waiting: list[QueuedWrite[Any]] = []

    def __repr__(self) -> str:
        return f"<WriteQueue {len(self)} waiting>"

    def __len__(self) -> int:
        return len(self._waiting)

    def write(self, work: Callable[[sqlite3.Connection], T], *, synced: bool = False) -> T:
        """Returns the result of the work once it is committed. Raises the error of the transaction."""
        write = QueuedWrite(work, self._interrupted(), synced=synced)
        with self._queueing:
            self._waiting.append(write)
        with self.turn:
            if not write.is_over:
                with self._queueing:
                    batch, self._waiting = self._waiting, []
                try:
                    self._carry_out(batch)
                finally:
                    for each in batch:
                        each.is_over = True
        return write.outcome()
