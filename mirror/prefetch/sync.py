"""Runs sync rules when they are due: lists the repository's tags, selects those that the rule names, prefetches them.

    waiting ── due, rule's lock and lease taken ──> running ──┬─> ok       waits for the next time
       ^                                                      ├─> failed   tried again sooner
       └──────────────────────────────────────────────────────┴─> interrupted (its process ended): again soon

One process of a store, the one that holds the lock `sync`, looks for rules that are due; if it dies another takes over.
A run itself holds a lock of its rule, so that a manual run and a scheduled one never overlap. Replicas with disks of
their own agree on each run by a lease, if there is a place to keep leases (Redis). If there is none, or if it is down,
the replica runs the rule itself, which costs upstream a few more requests.

The last run of each rule is noted on disk, so that a restart neither forgets nor repeats it.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Protocol

from mirror import telemetry
from mirror.aio.singleflight import cancel_and_wait
from mirror.errors import AlreadyRunning, IndexUnavailable, MirrorError, RuleUnknown, StoreError, UpstreamInvalid
from mirror.oci.reference import Repo
from mirror.policy.image_names import Image
from mirror.policy.schedule import Last, OtherLease, Plan, next_run, period_end
from mirror.ports import Lease, Locks, Records
from mirror.prefetch.batch import Prefetched, prefetch
from mirror.prefetch.jobs import Ended
from mirror.prefetch.progress import ProgressMeter
from mirror.prefetch.pulling import ImageResult, State
from mirror.repository.answers import Listing, Outcome
from mirror.repository.protocol import Readable
from mirror.values.platforms import Platform
from mirror.values.tagsets import TagSet, choose_tags
from mirror.values.timestamps import moment

#: Seconds between two looks for rules that are due, and between two attempts to take over from a process that died;
#: the same after an error; and between two notes of progress.
_LOOK_EVERY: Final = 5.0
_AFTER_TROUBLE: Final = 60.0
_TELL_EVERY: Final = 1.0
#: Seconds that a lease lasts unless it is renewed, and seconds between two renewals.
_LEASE: Final = 120.0
_RENEW_EVERY: Final = 30.0
#: The longest wait, in seconds, until a lease that another replica has is requested again.
_ASK_AGAIN: Final = 60.0
#: Tags that are requested at a time, and the most tags that a repository may have.
_PAGE: Final = 10_000
_MOST_TAGS: Final = 2_000_000
#: How many rules the schedule runs at once, and how many failures and images a result lists.
_AT_ONCE: Final = 2
_MOST_FAILURES: Final = 20


class Leases(Protocol):
    """Leases that the replicas share, to agree which of them does a run. All calls may raise `IndexUnavailable`."""

    async def take(self, name: str, seconds: float, *, done: bool = False) -> OtherLease | None:
        """Take or renew a lease for so many seconds from now. None if this replica has it now, otherwise the lease of
        another replica. `done` marks the run as finished.
        """

    async def give_back(self, name: str) -> None:
        """Give the lease up if this replica has it. Repeatable."""


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


class Sync:
    """All sync rules, as one process sees them. Without `run`, rules can be shown and run by hand only."""

    def __init__(
        self,
        rules: Iterable[SyncRule],
        source_for: Callable[[Repo], Readable],
        notes: Records,
        *,
        locks: Locks,
        leases: Leases | None = None,
        seed: str = "",
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`locks` are shared by all processes on one store. `seed` spreads rules that are due at the same time; it must
        be the same after a restart.
        """
        self.rules: Final = {rule.name: rule for rule in rules}
        self._source_for = source_for
        self._notes = notes
        self._locks = locks
        self.leases = leases
        self._seed = seed
        self.now = now
        self._sleep = sleep
        self._running: dict[str, asyncio.Task[None]] = {}
        self._not_before: dict[str, float] = {}

    # ----------------------------------------------------------------------------------------------------- status

    def rule(self, name: str) -> SyncRule:
        """The rule of this name. Raises `RuleUnknown`."""
        found = self.rules.get(name)
        if found is None:
            known = ", ".join(self.rules) or "there are none"
            raise RuleUnknown(f"no sync rule {name[:80]!r} ({known})")
        return found

    async def status(self) -> list[dict[str, Any]]:
        """Every rule with its last result and the time of its next run, as JSON."""
        return [await self._status(rule) for rule in self.rules.values()]

    async def _status(self, rule: SyncRule) -> dict[str, Any]:
        note = await asyncio.to_thread(self._note, rule)
        last = _last(note)
        busy = last.interrupted and await self._is_running(rule)
        due = next_run(rule.plan, last, self.now(), self._jitter(rule))
        return {
            "name": rule.name,
            "from": str(rule.repo),
            "tags": str(rule.tags),
            "when": str(rule.plan),
            "platforms": [str(one) for one in rule.platforms],
            "referrers": rule.referrers,
            "every_replica": rule.every_replica,
            "state": "sealed" if rule.sealed else _state(last, note, busy=busy),
            "progress": note.get("progress") if busy else None,
            "started": moment(last.start),
            "ended": moment(last.end),
            "by": note.get("by"),
            "result": note.get("result"),
            "failed_in_a_row": last.failures,
            "succeeded": moment(note.get("succeeded")),
            "next": None if busy or rule.sealed else moment(max(due, self.now())),
        }

    async def busy(self, name: str) -> bool:
        """True if the rule is running, in any process. Raises `RuleUnknown`, `StoreError`."""
        rule = self.rule(name)
        note = await asyncio.to_thread(self._note, rule)
        return _last(note).interrupted and await self._is_running(rule)

    async def _is_running(self, rule: SyncRule) -> bool:
        lease = await self._locks.try_hold(_lock(rule))
        if lease is None:
            return True
        lease.release()
        return False

    # ----------------------------------------------------------------------------------------------------- schedule

    async def run(self) -> None:
        """Run the rules that are due until cancelled, while this process has the lock `sync`. When cancelled, running
        syncs are interrupted.
        """
        lease = None
        try:
            while self.rules:
                pause = _LOOK_EVERY
                try:
                    if lease is None:
                        lease = await self._succeed()
                    if lease is not None:
                        await self.tick()
                except (StoreError, IndexUnavailable) as error:
                    telemetry.log.warning("sync scheduler failed", reason=str(error))
                    pause = _AFTER_TROUBLE
                except Exception:
                    # any error is survived: without this task nothing would ever be synced again
                    telemetry.log.exception("sync scheduler crashed")
                    pause = _AFTER_TROUBLE
                await self._sleep(pause)
        finally:
            await cancel_and_wait(*self._running.values())
            if lease is not None:
                lease.release()

    async def _succeed(self) -> Lease | None:
        lease = await self._locks.try_hold("sync")
        if lease is not None:
            telemetry.log.info("sync scheduler started", rules=len(self.rules), worker=os.getpid())
            for rule in self.rules.values():
                note = await asyncio.to_thread(self._note, rule)
                if isinstance(note.get("succeeded"), int | float):
                    telemetry.SYNC_SUCCESS.labels(rule.name).set(note["succeeded"])
        return lease

    async def tick(self) -> None:
        """Start the rules that are due now; returns without waiting for their ends. Raises `StoreError`."""
        for rule in self.rules.values():
            if len(self._running) >= _AT_ONCE:
                return
            if not rule.sealed and rule.name not in self._running and await asyncio.to_thread(self._is_due, rule):
                await self._start(rule)

    async def idle(self) -> None:
        """Wait until no sync that `tick` started is running."""
        while self._running:
            await asyncio.wait(set(self._running.values()))

    def _is_due(self, rule: SyncRule) -> bool:
        note = self._note(rule)
        if "key" not in note:
            # not on disk yet: written now, so that `since` stays the same at the next look
            self._notes.put(rule.name, note)
        due = next_run(rule.plan, _last(note), self.now(), self._jitter(rule))
        return self.now() >= max(due, self._not_before.get(rule.name, due))

    async def _start(self, rule: SyncRule) -> None:
        lease = await self._locks.try_hold(_lock(rule))
        if lease is None:
            return  # it runs already: by hand, or as a job
        try:
            # another run may have ended after the first check and before the lock was taken
            begins = await asyncio.to_thread(self._is_due, rule) and await self._is_ours(rule)
        except BaseException:
            lease.release()
            raise
        if not begins:
            lease.release()
            return
        task = asyncio.create_task(self._scheduled(rule))
        self._running[rule.name] = task
        # a callback, not the task itself: a task that is cancelled before it begins runs no `finally`
        task.add_done_callback(partial(self._let_go, rule.name, lease))

    def _let_go(self, name: str, lease: Lease, _task: asyncio.Task[None]) -> None:
        lease.release()
        del self._running[name]

    async def _scheduled(self, rule: SyncRule) -> None:
        try:
            await self._carry(rule, ProgressMeter(), "schedule")
        except MirrorError as error:
            telemetry.log.error("sync record cannot be written", rule=rule.name, reason=str(error))
            self._not_before[rule.name] = self.now() + _AFTER_TROUBLE
        except Exception:
            telemetry.log.exception("sync crashed", rule=rule.name)

    async def _is_ours(self, rule: SyncRule) -> bool:
        """True if no other replica does this run or has done it."""
        if self.leases is None or rule.every_replica:
            return True
        try:
            other = await self.leases.take(_lease(rule), _LEASE)
        except IndexUnavailable as error:
            telemetry.log.warning("sync runs without lease", rule=rule.name, reason=str(error))
            return True
        if other is None:
            return True
        if other.done:
            await asyncio.to_thread(self._skip, rule)
        else:
            self._not_before[rule.name] = self.now() + min(other.seconds, _ASK_AGAIN)
        return False

    def _skip(self, rule: SyncRule) -> None:
        """Note that another replica has done this run. The rule is due here again at its next regular time, in case the
        other replica is gone by then.
        """
        telemetry.log.info("sync done by another replica", rule=rule.name)
        now = self.now()
        note = {**self._note(rule), "start": now, "end": now, "ok": True, "failures": 0, "by": "another replica"}
        self._notes.put(rule.name, {**note, "result": {}})

    # ------------------------------------------------------------------------------------------------------ a run

    async def run_rule(self, name: str, meter: ProgressMeter, *, by: str) -> Ended:
        """Run the rule now, whether it is due or not. Raises `RuleUnknown`, `AlreadyRunning`, `StoreError`."""
        rule = self.rule(name)
        lease = await self._locks.try_hold(_lock(rule))
        if lease is None:
            raise AlreadyRunning(f"{name} is being synced already")
        with lease:
            return await self._carry(rule, meter, by)

    async def job(self, arguments: Mapping[str, Any], meter: ProgressMeter) -> Ended:
        """The work of jobs of the kind `sync`: `run_rule` for the rule that the argument `rule` names."""
        ended = await self.run_rule(str(arguments["rule"]), meter, by="job")
        first = first_failure(ended.result)
        return Ended(ended.ok, {**ended.result, **({} if first is None else {"first_failure": first})})

    async def _carry(self, rule: SyncRule, meter: ProgressMeter, by: str) -> Ended:
        """Do one run, and keep the rule's note on disk up to date. The caller has the rule's lock."""
        begun = {
            **await asyncio.to_thread(self._note, rule),
            "start": self.now(),
            "end": None,
            "by": by,
            "worker": os.getpid(),
        }
        begun.pop("progress", None)
        await asyncio.to_thread(self._notes.put, rule.name, begun)
        telemetry.log.info("sync started", rule=rule.name, by=by)
        task = asyncio.ensure_future(self._move(rule, meter))
        try:
            await self._accompany(rule, begun, meter, task)
        except asyncio.CancelledError:
            await cancel_and_wait(task)
            if meter.called_off:
                self._conclude(rule, begun, None)
            raise
        finally:
            await cancel_and_wait(task)
        ended = task.result()
        await asyncio.to_thread(self._conclude, rule, begun, ended)
        await self._settle_lease(rule, begun["start"], ended)
        return ended

    async def _accompany(
        self, rule: SyncRule, begun: Mapping[str, Any], meter: ProgressMeter, task: asyncio.Future[Ended]
    ) -> None:
        """Until the run ends: note its progress and renew the lease."""
        renewed = time.monotonic()
        while not task.done():
            await asyncio.wait({task}, timeout=_TELL_EVERY)
            if task.done():
                return
            with suppress(StoreError):
                await asyncio.to_thread(self._notes.put, rule.name, {**begun, "progress": meter.to_json()})
            if self.leases and not rule.every_replica and time.monotonic() - renewed > _RENEW_EVERY:
                renewed = time.monotonic()
                with suppress(IndexUnavailable):
                    await self.leases.take(_lease(rule), _LEASE)

    async def _move(self, rule: SyncRule, meter: ProgressMeter) -> Ended:
        if rule.sealed:
            return Ended(False, {"error": f"{rule.repo} is sealed: its upstream is never contacted"})
        try:
            listing = await _all_tags(self._source_for(rule.repo))
        except MirrorError as error:
            return Ended(False, {"error": f"its tags: {error}"})
        if listing.outcome is Outcome.STALE:
            return Ended(False, {"error": f"its tags: {listing.upstream} does not answer"})
        tags = choose_tags(listing.items, rule.tags)
        if not tags:
            return Ended(False, {"error": f"none of its {len(listing.items)} tags is meant by {rule.tags}"})
        meter.expect(len(tags))
        done = await prefetch(
            self._source_for,
            [Image(rule.repo, tag) for tag in tags],
            platforms=rule.platforms,
            referrers=rule.referrers,
            report=meter.note,
        )
        return Ended(done.ok and not done.stale, _result(done))

    def _conclude(self, rule: SyncRule, begun: Mapping[str, Any], ended: Ended | None) -> None:
        """Blocking: write down, log and count how the run ended; `ended` is None if it was cancelled on purpose."""
        now = self.now()
        note = {**begun, "end": now, "ok": ended is not None and ended.ok}
        note["result"] = dict(ended.result) if ended else {"error": "called off"}
        result = "cancelled"
        if ended is not None:
            result = "ok" if ended.ok else "failed"
            note["failures"] = 0 if ended.ok else _last(begun).failures + 1
        if ended is not None and ended.ok:
            note["succeeded"] = now
            telemetry.SYNC_SUCCESS.labels(rule.name).set(now)
        telemetry.SYNC_RUNS.labels(rule.name, result).inc()
        log = telemetry.log.warning if result == "failed" else telemetry.log.info
        told = {name: value for name, value in note["result"].items() if name not in ("failures", "stale")}
        if failures := note["result"].get("failures"):
            told["failures"], told["first_failure"] = len(failures), failures[0]
        log("sync ended", rule=rule.name, result=result, seconds=round(now - begun["start"], 1), **told)
        self._notes.put(rule.name, note)

    async def _settle_lease(self, rule: SyncRule, start: float, ended: Ended) -> None:
        """After a success, keep the lease as done until the next regular time. After a failure, give it back, so that
        another replica can try.
        """
        if self.leases is None or rule.every_replica:
            return
        with suppress(IndexUnavailable):
            left = period_end(rule.plan, start) - self.now()
            if ended.ok and left > 0:
                await self.leases.take(_lease(rule), left, done=True)
            else:
                await self.leases.give_back(_lease(rule))

    def _note(self, rule: SyncRule) -> dict[str, Any]:
        """The rule's note; a fresh one, known since now, if the rule is new or changed under its old name."""
        note = self._notes.get(rule.name) or {}
        if note.get("what") == rule.what and _seconds(note.get("since")) is not None:
            return note
        return {"since": self.now(), "what": rule.what}

    def _jitter(self, rule: SyncRule) -> float:
        """A fraction from 0 to 1, always the same for this rule in this store."""
        hashed = hashlib.blake2b(f"{self._seed} {rule.name}".encode(), digest_size=4).digest()
        return int.from_bytes(hashed) / 2**32


async def _all_tags(source: Readable) -> Listing:
    """All tags, fetched page by page. If a page is stale, the whole list counts as stale and ends there. Raises
    `UpstreamError`, `StoreError`.
    """
    tags: list[str] = []
    while True:
        listing = await source.tags(tags[-1] if tags else "", _PAGE)
        tags += listing.items
        if len(tags) > _MOST_TAGS:
            raise UpstreamInvalid(f"more than {_MOST_TAGS} tags", upstream=listing.upstream, status=200)
        if not listing.more or not listing.items or listing.outcome is Outcome.STALE:
            return replace(listing, items=tuple(tags))


def _lock(rule: SyncRule) -> str:
    return f"sync-{hashlib.blake2b(rule.name.encode(), digest_size=8).hexdigest()}"


def _lease(rule: SyncRule) -> str:
    return f"{rule.name} {rule.what}"


def _last(note: Mapping[str, Any]) -> Last:
    """The last run according to a note; fields with invalid values count as absent."""
    failures = note.get("failures")
    last = Last(_seconds(note.get("since")) or 0.0, failures=failures if isinstance(failures, int) else 0)
    return replace(last, start=_seconds(note.get("start")), end=_seconds(note.get("end")))


def _seconds(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _state(last: Last, note: Mapping[str, Any], *, busy: bool) -> str:
    if last.start is None:
        return "never ran"
    if last.interrupted:
        return "running" if busy else "interrupted"
    if last.failures:
        return "failed"
    return "ok" if note.get("ok") else "cancelled"


def _result(done: Prefetched) -> dict[str, Any]:
    """The result of a run, as JSON; `bytes` are those that were fetched."""
    new = [image for image, warmed in done.images.items() if _is_new(warmed)]
    return {
        "tags": len(done.images),
        "new_images": len(new),
        "new": [str(image) for image in new[:_MOST_FAILURES]],
        "bytes": done.fetched.bytes,
        "failures": [str(failure) for failure in done.failures[:_MOST_FAILURES]],
        "stale": [str(image) for image in done.stale[:_MOST_FAILURES]],
    }


def first_failure(result: Mapping[str, Any]) -> str | None:
    """The first failure in a run's result, or else the first image that upstream did not answer for."""
    stale = [f"upstream did not answer for {image}" for image in result.get("stale", ())]
    return next(iter([*result.get("failures", ()), *stale]), None)


def _is_new(warmed: ImageResult) -> bool:
    root = warmed.moved.get(warmed.root) if warmed.root is not None else None
    return root is not None and root.state is State.FETCHED
