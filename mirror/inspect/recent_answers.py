"""The last answers to clients. Each worker keeps them in memory and, shortly after, in a file of its own.

    run() ── on start: reads into memory what the previous worker left in the file
    note() ──> in memory, newest last, bounded ── run(), once a second if there is something new ──> the worker's file

On the path of a request this costs one entry in a dictionary. The file holds no more than the log does, and does not
say which client asked. A crash loses the last second.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

from mirror import telemetry
from mirror.aio.threads import uninterrupted
from mirror.errors import StoreError
from mirror.policy.last_answer import LONGEST, LastAnswer
from mirror.repository.answers import Outcome
from mirror.rounds import run_rounds

#: The number of answers that a worker remembers for each kind of resource: below 500 bytes each, in memory and on disk.
MOST: Final = 500
#: Seconds between two writes.
_EVERY: Final = 1.0


class AnswerFile(Protocol):
    """The worker's file (`store/local/answer_files.py`). Calls block briefly, and are never concurrent."""

    def load(self) -> Sequence[LastAnswer]:
        """Returns what an earlier worker has left in the file, oldest first. Raises `StoreError`."""

    def save(self, answers: Sequence[LastAnswer]) -> None:
        """Replaces the contents of the file. Raises `StoreError`."""


class Answered(Protocol):
    """The details of one answer (`server/registry/pull.py`)."""

    @property
    def repository(self) -> str | None: ...
    @property
    def reference(self) -> str | None: ...
    @property
    def outcome(self) -> Outcome: ...
    @property
    def upstream(self) -> str | None: ...
    @property
    def digest(self) -> object: ...
    @property
    def tag_override(self) -> str | None: ...
    @property
    def error(self) -> str | None: ...
    @property
    def sent(self) -> int: ...


_Key = tuple[str | None, str | None, str]
_Noted = tuple[float, str, int, Answered, float, str]


class RecentAnswers:
    """The last answers of one process. They are only in memory if `file` is None."""

    def __init__(
        self,
        file: AnswerFile | None = None,
        *,
        now: Callable[[], float] = time.time,
        most: int = MOST,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._file = file
        self._now = now
        self._sleep = sleep
        self._most = most
        #: By kind of resource; the newest answer is the last of its kind.
        self._entries: dict[str, dict[_Key, _Noted | LastAnswer]] = {}
        self._new = False
        self._failed = False
        self._at_the_file = asyncio.Lock()

    def __repr__(self) -> str:
        counts = {kind: len(entries) for kind, entries in self._entries.items()}
        return f"<RecentAnswers {counts}>"

    def note(self, kind: str, method: str, status: int, answer: Answered, seconds: float, request: str) -> None:
        """Notes an answer that was given. `answer` must not change afterwards: to keep this cheap on the path of every
        request, it is only stored here and converted later.
        """
        entry = (self._now(), method, status, answer, seconds, request)
        self._put(kind, (answer.repository, answer.reference, method), entry)
        self._new = True

    def _put(self, kind: str, key: _Key, entry: _Noted | LastAnswer) -> None:
        entries = self._entries.setdefault(kind, {})
        # again as the last one
        entries.pop(key, None)
        entries[key] = entry
        if len(entries) > self._most:
            del entries[next(iter(entries))]

    def answers(self) -> list[LastAnswer]:
        """Returns all answers, grouped by kind, the oldest of each kind first."""
        for kind, entries in self._entries.items():
            for key, entry in entries.items():
                if not isinstance(entry, LastAnswer):
                    # each is converted once, however often all are written
                    entries[key] = _answer(kind, entry)
        return [
            entry for entries in self._entries.values() for entry in entries.values() if isinstance(entry, LastAnswer)
        ]

    async def run(self) -> None:
        """Reads the file once, then writes it every second if there is something new, until cancelled."""
        file = self._file
        if file is None:
            return
        is_read = False

        async def write() -> None:
            nonlocal is_read
            if not is_read:
                # once, however it ends: what cannot be read now is missed by nobody
                is_read = True
                await self._take_over(file)
            await self.flush()

        await run_rounds(write, _EVERY, crashed="writing of recent answers crashed", once=True, sleep=self._sleep)

    async def flush(self) -> None:
        """Writes the file if there are new answers. A failure is logged, and the next call tries again."""
        if self._file is None:
            return
        async with self._at_the_file:
            if not self._new:
                return
            self._new = is_written = False
            try:
                # the list is made on the event loop, not in the thread, so that no `note` changes it meanwhile
                await uninterrupted(asyncio.to_thread(self._file.save, self.answers()))
            except StoreError as error:
                if not self._failed:
                    telemetry.log.warning("recent answers cannot be written", reason=str(error))
                self._failed = True
            else:
                is_written, self._failed = True, False
            finally:
                self._new = self._new or not is_written

    async def _take_over(self, file: AnswerFile) -> None:
        """Reads the answers of the previous worker; they are older than all answers of this one."""
        try:
            # a stop soon after the start flushes and closes the file next; that must wait until the thread has read it
            async with self._at_the_file:
                earlier = await uninterrupted(asyncio.to_thread(file.load))
        except StoreError as error:
            telemetry.log.warning("recent answers cannot be read", reason=str(error))
            return
        ours, self._entries = self._entries, {}
        for answer in earlier:
            self._put(answer.kind, (answer.repository, answer.reference or None, answer.method), answer)
        for kind, entries in ours.items():
            for key, entry in entries.items():
                self._put(kind, key, entry)


def _answer(kind: str, entry: _Noted) -> LastAnswer:
    at, method, status, answer, seconds, request = entry
    return LastAnswer(
        repository=answer.repository or "",
        kind=kind,
        reference=answer.reference or "",
        at=round(at, 6),
        method=method,
        status=status,
        outcome=answer.outcome.value,
        upstream=answer.upstream or "",
        digest="" if answer.digest is None else str(answer.digest),
        tag_override=answer.tag_override or "",
        error=telemetry.redact(answer.error or "")[:LONGEST],
        sent=answer.sent,
        seconds=round(seconds, 6),
        request=request,
    )
