"""What a pull awaits before it believes what is remembered of records that other replicas change, too.

look ── young enough ──> counts, or another replica writes
     └── old ── a request to the bucket ──> the same
                  └── no answer within two seconds, or none lately ──> what was so at the last look, unless that is
                                                                       too long ago
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from contextlib import suppress
from typing import Final, Protocol

from mirror.aio.bounded_threads import in_thread
from mirror.errors import BucketUnavailable
from mirror.ports import Look

#: Seconds for which a pull waits for the bucket.
_PATIENCE: Final = 2.0


class SeenJournals(Protocol):
    """What is needed of the journals, by their names. True: what is remembered of their records counts."""

    def look(self, name: str, age: float, *, patient: bool) -> bool:
        """Blocking: whether it counts now, or did `age` seconds ago. Raises `StoreError`; unless `patient`, at once
        while the bucket does not answer.
        """

    def young(self, name: str, age: float) -> bool | None:
        """What `look` would return if it need not ask; None if it must. Quick enough for the event loop."""

    def believed(self, name: str) -> None:
        """Raises `BucketUnavailable` if there was no look, or if the last one is too long ago. Quick enough for the
        event loop.
        """

    def not_answered(self) -> None:
        """To be called when the bucket takes too long: for some seconds nobody waits for it any more."""


class JournalLooks:
    """Looks at journals that are no older than `age` seconds."""

    def __init__(self, journals: SeenJournals, threads: Executor, age: float, *, patience: float = _PATIENCE) -> None:
        """`threads` are those in which nothing else waits for the bucket. `patience` is in seconds."""
        self._journals = journals
        self._threads = threads
        self._age = age
        self._patience = patience
        #: By name: the look that has begun, and the one that begins after it.
        self._begun: dict[str, asyncio.Task[bool]] = {}
        self._next: dict[str, asyncio.Task[bool]] = {}

    def __repr__(self) -> str:
        return f"<JournalLooks at {self._journals!r}>"

    async def look(self, name: str) -> Look:
        """Returns what to think of what is remembered of a journal's records. Raises `StoreError`."""
        young = self._journals.young(name, self._age)
        if young is not None:
            return _seen(young)
        asking = self._ask(name)
        done, _ = await asyncio.wait({asking}, timeout=self._patience)
        if not done:
            self._journals.not_answered()
            # whoever asks from now on does not wait behind it
            self._begun.pop(name, None)
            self._next.pop(name, None)
        else:
            with suppress(BucketUnavailable):
                return _seen(asking.result())
        self._journals.believed(name)
        return Look.OLD

    def _ask(self, name: str) -> asyncio.Task[bool]:
        """A look that begins after this call."""
        asking = self._next.get(name)
        if asking is None:
            asking = asyncio.get_running_loop().create_task(self._look_after(self._begun.get(name), name))
            asking.add_done_callback(_retrieve)
            self._next[name] = asking
        return asking

    async def _look_after(self, before: asyncio.Task[bool] | None, name: str) -> bool:
        if before is not None:
            await asyncio.wait({before})
        asking = self._next.get(name)
        if asking is None or asking is not asyncio.current_task():
            # it took too long to begin: nobody waits for it any more
            return False
        self._begun[name] = self._next.pop(name)
        try:
            return await in_thread(self._threads, self._journals.look, name, self._age, patient=False)
        finally:
            if self._begun.get(name) is asking:
                del self._begun[name]


def _seen(counts: bool) -> Look:
    return Look.COUNTS if counts else Look.CHANGING


def _retrieve(asking: asyncio.Future[bool]) -> None:
    """Look at an error that nobody waits for."""
    if not asking.cancelled():
        asking.exception()
