"""What becomes of the events of a replica that is gone.

    a replica runs ── beat, every 15 s ──> runs/<run> has another version each time
             ├── stops ──> "ended": its events are adopted at once
             └── dies, or is frozen: the same version for 60 s, by the clock of whoever watches ──> adopted
    adopted, one change after the other:
        prepared ── the records say what is there ──┐
        confirmed ──────────────────────────────────┴─> the events wait here ── marked as adopted ──> deleted

The replica that has the lease `adoption` does this. It may be killed between any two steps: the next one does the same
again, with the same ids. A replica that was only frozen goes on, and finds what was adopted (`bucket_outbox.py`).
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from mirror import telemetry
from mirror.clock import steady_time
from mirror.errors import RecordChanged, StoreError
from mirror.events.announcing import OutboxAnnouncer
from mirror.events.bucket_outbox import BucketOutbox, StoredChange
from mirror.ports import ABSENT, Bucket, Expected, Lease, Locks, NotChanged, Version
from mirror.rounds import KeptLock, run_rounds

RUNS: Final = "runs/"
#: Seconds between two beats, between two looks at the other runs, and without a beat until a run counts as gone.
_BEAT_EVERY: Final = 15.0
_LOOK_EVERY: Final = 15.0
_GONE_AFTER: Final = 60.0
#: Seconds after which a change is given up whose records cannot be read.
_GIVEN_UP_AFTER: Final = 3600.0
#: Seconds between two looks for old beats, and after which a beat is old.
_TIDY_EVERY: Final = 3600.0
_FORGOTTEN_AFTER: Final = 7 * 86400.0
#: The lock of the process of a replica that beats for it.
_BEAT_LOCK: Final = "runbeat"
_LIMIT: Final = 4096
#: How often a change is adopted again that its replica changes meanwhile.
_TRIES: Final = 5


@dataclass(slots=True)
class _SeenRun:
    version: Version | None
    since: float


class EventAdoption:
    """The beat of this replica, and its look at the others, as one process does it."""

    def __init__(
        self,
        outbox: BucketOutbox,
        announcer: OutboxAnnouncer,
        bucket: Bucket,
        locks: Locks,
        *,
        lease: str,
        clock: Callable[[], float] = steady_time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`locks` are those of the cluster, `lease` the name of the one of this work. `clock` cannot be set."""
        self._outbox = outbox
        self._announcer = announcer
        self._bucket = bucket
        self._locks = locks
        self._lease = lease
        self._clock = clock
        self._sleep = sleep
        self._beat_version: Expected = ABSENT
        self._seen: dict[str, _SeenRun] = {}
        self._unreadable: dict[str, float] = {}
        self._tidies_at = float("-inf")

    def __repr__(self) -> str:
        return f"<EventAdoption {len(self._seen)} other runs>"

    async def run(self) -> None:
        """Beats, and adopts, until it is cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._repeat(_BEAT_LOCK, lambda _lease: asyncio.to_thread(self.beat), _BEAT_EVERY))
            tasks.create_task(self._repeat(self._lease, self.adopt, _LOOK_EVERY))

    async def _repeat(self, lock: str, work: Callable[[Lease], Awaitable[object]], pause: float) -> None:
        async def work_if_ours() -> None:
            if (lease := await kept.taken()) is not None:
                await work(lease)

        with KeptLock(partial(self._locks.try_hold, lock)) as kept:
            await run_rounds(
                work_if_ours,
                pause,
                failed="events not adopted",
                crashed="adoption of events crashed",
                sleep=self._sleep,
            )

    # -------------------------------------------------------------------------------------------------------- beats

    def beat(self, *, ended: bool = False) -> None:
        """Blocking: shows that this replica lives, or that it ends. Raises `StoreError`."""
        key = f"{RUNS}{self._outbox.run}"
        content = json.dumps({"nonce": secrets.token_hex(8), "ended": ended}).encode()
        try:
            self._beat_version = self._bucket.write(key, content, expect=self._beat_version)
        except RecordChanged:
            # another process of this replica has beaten; or another replica has adopted what was here
            found = self._bucket.read(key, _LIMIT)
            known = ABSENT if found is None or isinstance(found, NotChanged) else found.version
            try:
                self._beat_version = self._bucket.write(key, content, expect=known)
            except RecordChanged:
                # somebody beats all the time, so the run lives
                self._beat_version = ABSENT

    def end(self) -> None:
        """Blocking: lets others adopt at once what is left here, since this replica ends. Raises nothing: otherwise
        they wait for a minute.
        """
        try:
            self.beat(ended=True)
        except StoreError as error:
            telemetry.log.warning("events not handed over", reason=str(error))

    # ----------------------------------------------------------------------------------------------------- adoption

    async def adopt(self, lease: Lease) -> int:
        """Adopts the events of runs that are gone; returns how many changes. Raises `StoreError`."""
        adopted = 0
        for run in await asyncio.to_thread(self._gone):
            changes = await asyncio.to_thread(lambda run=run: list(self._outbox.stored(run)))  # type: ignore[misc]
            for stored in changes:
                if lease.lost.is_set():
                    return adopted
                adopted += await asyncio.to_thread(self._try_to_adopt, stored)
        if self._clock() >= self._tidies_at:
            self._tidies_at = self._clock() + _TIDY_EVERY
            await asyncio.to_thread(self._tidy)
        if adopted:
            telemetry.log.warning("events adopted from a replica that is gone", changes=adopted)
            telemetry.EVENTS_ADOPTED.inc(adopted)
        return adopted

    def _gone(self) -> list[str]:
        """The runs of others that have changes, and no beat."""
        own = self._outbox.run
        runs = sorted(run for run in self._outbox.runs() if run != own)
        self._seen = {run: seen for run, seen in self._seen.items() if run in runs}
        return [run for run in runs if self._is_gone(run)]

    def _is_gone(self, run: str) -> bool:
        found = self._bucket.read(f"{RUNS}{run}", _LIMIT)
        version = None if found is None or isinstance(found, NotChanged) else found.version
        if found is not None and not isinstance(found, NotChanged) and _has_ended(found.content):
            return True
        seen = self._seen.get(run)
        if seen is None or seen.version != version:
            seen = self._seen[run] = _SeenRun(version, self._clock())
        return self._clock() - seen.since >= _GONE_AFTER

    def _tidy(self) -> None:
        """Deletes the beats of replicas that ended long ago."""
        beats = {info.key: info.changed_at for info in self._bucket.list(RUNS)}
        # by the clock of the store alone
        latest = max(beats.values(), default=0.0)
        # a replica that is back after all beats anew
        if old := [key for key, at in beats.items() if latest - at > _FORGOTTEN_AFTER]:
            self._bucket.delete(old)

    def _try_to_adopt(self, stored: StoredChange) -> bool:
        """Blocking: adopts a change; one that cannot be looked at holds up no others, and is given up after an hour."""
        try:
            done = self.adopt_change(stored)
        except StoreError as error:
            since = self._unreadable.setdefault(stored.object, self._clock())
            if self._clock() - since <= _GIVEN_UP_AFTER:
                telemetry.log.warning("change not adopted", repository=stored.change.key, reason=str(error))
                return False
            done = self.adopt_change(stored, lost=str(error))
        self._unreadable.pop(stored.object, None)
        return done

    def adopt_change(self, stored: StoredChange, *, lost: str = "") -> bool:
        """Blocking: lets the events of a change wait here. False if its replica still changes it. `lost` says why
        nobody can say what became of it; that is reported then. Raises `StoreError`.
        """
        for _ in range(_TRIES):
            if not stored.is_adopted:
                if stored.events is not None:
                    with self._outbox.turn(stored.change.key) as order:
                        pass
                    self._outbox.take_in(stored.change, order, stored.events)
                else:
                    order, events = self._announcer.look_at(stored.change, lost)
                    self._outbox.take_in(stored.change, order, events)
            if self._outbox.mark_adopted(stored):
                self._outbox.drop(stored)
                return True
            again = self._outbox.look(stored.object)
            if again is None:
                return True
            stored = again
        return False


def _has_ended(content: bytes) -> bool:
    try:
        said = json.loads(content)
        return isinstance(said, dict) and said.get("ended") is True
    except (ValueError, RecursionError):
        return False
