"""The sync rules of the configuration, and what the disk has on the last run of each."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final, Literal, Protocol, TypeVar

from typing_extensions import TypedDict

from mirror.aio.singleflight import cancel_and_wait
from mirror.aio.threads import uninterrupted
from mirror.errors import LeaseLost, RuleUnknown, StoreError
from mirror.oci.reference import Repo
from mirror.policy.schedule import Last, Plan, spread
from mirror.ports import Lease, Locks, Records
from mirror.prefetch.progress import ProgressJson, ProgressMeter
from mirror.values.json_form import JsonForm
from mirror.values.json_types import Count, Timestamp, about
from mirror.values.platforms import Platform
from mirror.values.tagsets import TagSet

T = TypeVar("T")

#: Seconds between two records of a run's progress.
_NOTE_EVERY: Final = 1.0


@dataclass(frozen=True, slots=True)
class SyncRule:
    """A rule of the configuration (`[[sync]]`). No `platforms` means all.

    `every_replica`: each replica with a disk of its own runs the rule, instead of one for all. `sealed`: the upstream
    is never contacted, so the rule never runs.
    """

    name: str
    repo: Repo
    tags: TagSet
    plan: Plan
    platforms: tuple[Platform, ...] = ()
    referrers: bool = False
    every_replica: bool = False
    sealed: bool = False

    @property
    def what(self) -> str:
        """A hash of what the rule fetches. If it changes, the rule counts as a new one under the same name."""
        text = f"{self.repo} {self.tags!r} {sorted(map(str, self.platforms))} {self.referrers}"
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    @property
    def lock(self) -> str:
        """The name of the lock that a run of this rule holds, among the processes of one store."""
        return sync_lock(self.name)

    @property
    def lease(self) -> str:
        """The name of the lease by which replicas agree on a run of this rule."""
        return f"{self.name} {self.what}"

    def jitter(self, seed: str) -> float:
        """A fraction from 0 to 1, always the same for this rule and seed."""
        return spread(f"{seed} {self.name}")


def sync_lock(name: str) -> str:
    """The lock of the sync rule of this name."""
    return f"sync-{hashlib.blake2b(name.encode(), digest_size=8).hexdigest()}"


#: The state of a rule's last run; `sealed` if it cannot run.
RunState = Literal["never ran", "running", "interrupted", "failed", "ok", "cancelled", "sealed"]


class SyncRuleJson(TypedDict):
    """A sync rule, with its last result and next run."""

    name: str
    repository: str
    tags: Annotated[str, about("Which of its tags.")]
    schedule: str
    platforms: Annotated[list[str], about("None: all.")]
    referrers: bool
    every_replica: Annotated[bool, about("Each replica runs it, instead of one for all.")]
    state: RunState
    progress: ProgressJson | None
    started: Annotated[Timestamp | None, about("When the last run began.")]
    ended: Timestamp | None
    started_by: Annotated[str | None, about("`schedule`, `job`, `hand` or `another replica`.")]
    result: Annotated[
        dict[str, Any] | None, about("Of the last run; `error`, `failures` and `stale` say why it failed.")
    ]
    consecutive_failures: Count
    last_success: Timestamp | None
    next_run: Timestamp | None


@dataclass(frozen=True, slots=True)
class RuleRecord:
    """The last run of a rule, as its JSON file on disk has it. Times are in epoch seconds.

    `what` and `since`: what the rule fetches, and when it was first known with that. `end` is None while the run lasts,
    and if it was interrupted. `failures` counts the failed runs in a row. `succeeded` is the end of the last run that
    succeeded. `progress` and `result` are JSON for people.
    """

    what: str
    since: float
    start: float | None = None
    end: float | None = None
    by: str | None = None
    worker: int | None = None
    ok: bool = False
    failures: int = 0
    succeeded: float | None = None
    progress: ProgressJson | None = None
    result: dict[str, Any] | None = None

    @property
    def last(self) -> Last:
        """The last run, as the schedule needs it."""
        return Last(self.since, self.start, self.end, self.failures)

    def state(self, *, running: bool) -> RunState:
        """The state, for people. `running`: a process has the rule's lock."""
        if self.start is None:
            return "never ran"
        if self.end is None:
            return "running" if running else "interrupted"
        if self.failures:
            return "failed"
        return "ok" if self.ok else "cancelled"


_RECORD: Final = JsonForm(RuleRecord, sparse=True)


class RecordedRule(Protocol):
    """A rule whose last run is recorded under its `name`. If `what` changes, it counts as a new rule. Its run holds
    the lock `lock`.
    """

    @property
    def name(self) -> str: ...

    @property
    def what(self) -> str: ...

    @property
    def lock(self) -> str: ...


def find_rule(rules: Mapping[str, T], name: str, kind: str) -> T:
    """The rule of this name. Raises `RuleUnknown`, which names those that there are; `kind` is what they do."""
    rule = rules.get(name)
    if rule is None:
        known = ", ".join(rules) or "there are none"
        raise RuleUnknown(f"no {kind} rule {name[:80]!r} ({known})")
    return rule


async def is_running(rule: RecordedRule, record: RuleRecord, locks: Locks) -> bool:
    """True if the record has a run without an end, and a process has the rule's lock. Raises `StoreError`."""
    return record.last.interrupted and await locks.is_held(rule.lock)


class RuleRecords:
    """The records of all rules. All calls but `note_progress` block and may raise `StoreError`."""

    def __init__(self, records: Records, now: Callable[[], float]) -> None:
        self._records = records
        self._now = now

    def under(self, lease: Lease) -> RuleRecords:
        """The same records, for the run that has this lock."""
        return RuleRecords(lease.fence(self._records), self._now)

    def get(self, rule: RecordedRule) -> RuleRecord:
        """The rule's record; a new one, known since now, if there is none that is valid and about the same content."""
        return self._read(rule) or RuleRecord(rule.what, self._now())

    def get_or_create(self, rule: RecordedRule) -> RuleRecord:
        """Like `get`, but a new record is written, so that the rule is not known since later at the next call."""
        record = self._read(rule)
        if record is None:
            record = RuleRecord(rule.what, self._now())
            self.put(rule, record)
        return record

    def put(self, rule: RecordedRule, record: RuleRecord) -> None:
        """Write the rule's record."""
        self._records.put(rule.name, _RECORD.to_json(record))

    async def note_progress(self, rule: RecordedRule, record: RuleRecord, meter: ProgressMeter) -> None:
        """Write the rule's record with the progress of its run, if it can be written. Raises `LeaseLost`."""
        try:
            await asyncio.to_thread(self.put, rule, replace(record, progress=meter.to_json()))
        except StoreError as error:
            if isinstance(error, LeaseLost):
                raise

    def _read(self, rule: RecordedRule) -> RuleRecord | None:
        record = _RECORD.from_json(self._records.get(rule.name))
        return record if record and record.what == rule.what else None


async def run_noting(
    work: Awaitable[T], note: Callable[[], Awaitable[Any]], meter: ProgressMeter, cancelled: Callable[[], None]
) -> T:
    """The result of a run of a rule; until then, `note` is called again and again. If the caller is cancelled, the run
    is, too, and is waited for; `cancelled`, which blocks, is called then if that was on purpose.
    """
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=_NOTE_EVERY)
            if not task.done():
                await note()
    except asyncio.CancelledError:
        try:
            await cancel_and_wait(task)
        finally:
            # also if this was cancelled again while the run took long to end
            if meter.cancelled:
                await uninterrupted(asyncio.to_thread(cancelled))
        raise
    finally:
        await cancel_and_wait(task)
    return task.result()
