"""The last answers to clients. Each worker keeps them in memory and, shortly after, in a file of its own.

    run() ── on start: reads into memory what the previous worker left in the file
    note() ──> in memory, newest last, bounded ── run(), once a second if there is something new ──> the worker's file

On the path of a request this costs one entry in a dictionary. The file holds no more than the log does, and does not
say which client asked. A crash loses the last second.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from mirror import telemetry
from mirror.aio.threads import uninterrupted
from mirror.errors import StoreError
from mirror.policy.last_answer import LONGEST, LastAnswer
from mirror.repository.answers import Outcome

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


class Recent:
    """The last answers of one process. They are only in memory if `keeping` is None."""

    def __init__(
        self, keeping: AnswerFile | None = None, *, now: Callable[[], float] = time.time, most: int = MOST
    ) -> None:
        self._keeping = keeping
        self._now = now
        self._most = most
        self._noted: dict[str, dict[_Key, _Noted | LastAnswer]] = {}
        self._new = False
        self._failed = False
        self._at_the_file = asyncio.Lock()

    def note(self, kind: str, method: str, status: int, said: Answered, seconds: float, request: str) -> None:
        """Notes an answer that was given. `said` must not change afterwards: to keep this cheap on the path of every
        request, it is only stored here and converted later.
        """
        of_kind = self._noted.get(kind)
        if of_kind is None:
            of_kind = self._noted[kind] = {}
        key = (said.repository, said.reference, method)
        of_kind.pop(key, None)
        of_kind[key] = (self._now(), method, status, said, seconds, request)
        if len(of_kind) > self._most:
            del of_kind[next(iter(of_kind))]
        self._new = True

    def answers(self) -> list[LastAnswer]:
        """Returns all answers, grouped by kind, the oldest of each kind first."""
        return [
            one if isinstance(one, LastAnswer) else _answer(kind, one)
            for kind, noted in self._noted.items()
            for one in noted.values()
        ]

    async def run(self) -> None:
        """Reads the file once, then writes it every second if there is something new, until cancelled."""
        if self._keeping is None:
            return
        await self._take_over(self._keeping)
        while True:
            await asyncio.sleep(_EVERY)
            await self.flush()

    async def flush(self) -> None:
        """Writes the file if there are new answers. A failure is logged, and the next call tries again."""
        if self._keeping is None:
            return
        async with self._at_the_file:
            if not self._new:
                return
            self._new = False
            try:
                # the list is made on the event loop, not in the thread, so that no `note` changes it meanwhile
                await uninterrupted(asyncio.to_thread(self._keeping.save, self.answers()))
            except StoreError as error:
                if not self._failed:
                    telemetry.log.warning("recent answers cannot be written", reason=str(error))
                self._failed = self._new = True
            else:
                self._failed = False

    async def _take_over(self, keeping: AnswerFile) -> None:
        """Reads the answers of the previous worker; they are older than all answers of this one."""
        try:
            # a stop soon after the start flushes and closes the file next; that must wait until the thread has read it
            async with self._at_the_file:
                left = await uninterrupted(asyncio.to_thread(keeping.load))
        except StoreError as error:
            telemetry.log.warning("recent answers cannot be read", reason=str(error))
            return
        ours, self._noted = self._noted, {}
        for one in left:
            self._noted.setdefault(one.kind, {})[(one.repository, one.reference or None, one.method)] = one
        for kind, noted in ours.items():
            of_kind = self._noted.setdefault(kind, {})
            for key, entry in noted.items():
                of_kind.pop(key, None)
                of_kind[key] = entry
        for of_kind in self._noted.values():
            while len(of_kind) > self._most:
                del of_kind[next(iter(of_kind))]


def _answer(kind: str, noted: _Noted) -> LastAnswer:
    at, method, status, said, seconds, request = noted
    return LastAnswer(
        repository=said.repository or "",
        kind=kind,
        reference=said.reference or "",
        at=round(at, 3),
        method=method,
        status=status,
        outcome=said.outcome.value,
        upstream=said.upstream or "",
        digest="" if said.digest is None else str(said.digest),
        tag_override=said.tag_override or "",
        error=telemetry.redact(said.error or "")[:LONGEST],
        sent=said.sent,
        seconds=round(seconds, 6),
        request=request,
    )
