"""Rounds of retention: when they are due, or when somebody asks for one.

    due, or asked ── try_hold("retention") ──┬─ another process has it ──> nothing to do
                                             └─ held ── repositories, by name ── after each: report stored ──> ended
                                                          └─ lost, the process ends ──> the next round goes on
                                                                                        behind the last repository

A round that goes on decides anew about each repository, from what is there then: the report says only which ones are
done. If the rules are others by then, a round begins anew. A round over some repositories only stores no report.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Final

from mirror import telemetry
from mirror.aio.threads import uninterrupted
from mirror.collection.pace import run_paced
from mirror.errors import IndexUnavailable, LeaseLost, StoreError
from mirror.oci.reference import Repo
from mirror.policy.schedule import Last, Plan, next_run
from mirror.ports import Lease, Locks, Records
from mirror.retention.repository_retention import (
    RepositoryPlan,
    RepositoryRetention,
    RetentionTools,
    repositories,
)
from mirror.retention.retention_marks import RetentionMarks
from mirror.retention.retention_report import RetentionReport
from mirror.rounds import run_rounds

#: Who asks for rounds that are due.
SCHEDULE: Final = "schedule"
#: The lock of the process that deletes by rules.
_LOCK: Final = "retention"
#: Keys among the records of retention; a repository has a `/` in its name.
_ROUND: Final = "round"
_KNOWN: Final = "known"
#: Seconds between two reports that are stored while repositories lose nothing.
_STORE_EVERY: Final = 5.0
#: Seconds between two looks whether a round is due, and after an error.
_LOOK_EVERY: Final = 60.0


@dataclass(frozen=True, slots=True)
class RoundWanted:
    """A round that somebody asks for, of the repositories that `has` accepts; None: of all."""

    by: str
    has: Callable[[Repo], bool] | None = None


class Retention:
    """The rounds of retention, as one process does them."""

    def __init__(
        self,
        tools: RetentionTools,
        locks: Locks,
        rounds: Records,
        *,
        ended: Callable[[RetentionReport], None] = lambda report: None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`rounds` has the report of the last round. `ended` is called with each report of this process."""
        self._tools = tools
        self._locks = locks
        self._rounds = rounds
        self._ended = ended
        self._sleep = sleep
        self._rules = blake2b(repr(tools.rules).encode(), digest_size=8).hexdigest()

    def __repr__(self) -> str:
        return f"<Retention {', '.join(self._tools.rules.registries_with_policies)}>"

    @property
    def has_rules(self) -> bool:
        """Whether there is any rule."""
        return bool(self._tools.rules.registries_with_policies)

    # -------------------------------------------------------------------------------------------------------- rounds

    async def run(self, wanted: RoundWanted) -> RetentionReport | None:
        """Does one round. Returns None if another process is at it. Raises `StoreError`, `IndexUnavailable`."""
        lease = await self._locks.try_hold(_LOCK)
        if lease is None:
            return None
        with lease:
            return await self._round(lease, wanted, RetentionReport(self._now(), wanted.by, self._rules))

    async def go_on(self, plan: Plan | None = None) -> RetentionReport | None:
        """Does one round by schedule; goes on with one that was interrupted. With `plan`, only if it is due still:
        another process may just have done it.
        """
        lease = await self._locks.try_hold(_LOCK)
        if lease is None:
            return None
        with lease:
            if plan is not None and not await asyncio.to_thread(self._is_due, plan):
                return None
            last = await asyncio.to_thread(self.last)
            report = RetentionReport(self._now(), SCHEDULE, self._rules, failures=last.failures if last else 0)
            if last is not None and last.ended_at is None and last.rules == self._rules:
                last.resumed += 1
                report = last
                telemetry.log.info("retention goes on", after=last.after, begun=last.begun_at)
            return await self._round(lease, RoundWanted(SCHEDULE), report)

    async def _round(self, lease: Lease, wanted: RoundWanted, report: RetentionReport) -> RetentionReport:
        rounds = lease.fence(self._rounds)
        try:
            has_ended = await run_paced(self._steps(wanted, report, rounds), lease, self._sleep)
        except (StoreError, IndexUnavailable):
            report.failures += 1
            await self._end(wanted, report, rounds)
            raise
        if has_ended:
            report.failures = 0
            await self._end(wanted, report, rounds)
        return report

    def _steps(self, wanted: RoundWanted, report: RetentionReport, rounds: Records) -> Generator[None]:
        tools = replace(self._tools, marks=RetentionMarks(rounds))
        self._store(wanted, report, rounds)
        stored = time.monotonic()
        protected = tools.protected.look()
        yield
        for repo, policies in repositories(tools.parts, tools.rules):
            if str(repo) <= report.after or (wanted.has is not None and not wanted.has(repo)):
                continue
            before = report.tags, report.manifests
            try:
                yield from RepositoryRetention(tools, repo, policies).steps(protected, report)
            except LeaseLost:
                raise
            except StoreError as error:
                telemetry.log.warning("repository not judged", repository=str(repo), reason=str(error))
                report.note_unread(str(repo), str(error))
            except Exception as error:
                # otherwise the next round would go on at this repository, and end there again
                telemetry.log.exception("repository not judged", repository=str(repo))
                report.note_unread(str(repo), f"an error of the mirror: {type(error).__name__}")
            report.repositories += 1
            report.after = str(repo)
            if before != (report.tags, report.manifests) or time.monotonic() - stored >= _STORE_EVERY:
                self._store(wanted, report, rounds)
                stored = time.monotonic()
            yield
        report.complete = True

    def _store(self, wanted: RoundWanted, report: RetentionReport, rounds: Records) -> None:
        if wanted.has is None:
            rounds.put(_ROUND, report.to_json())

    async def _end(self, wanted: RoundWanted, report: RetentionReport, rounds: Records) -> None:
        report.ended_at = self._now()
        try:
            await uninterrupted(asyncio.to_thread(self._store, wanted, report, rounds))
        except StoreError as error:
            telemetry.log.warning("retention not recorded", reason=str(error))
        telemetry.notice(
            telemetry.Notice.RETENTION_RAN, tags=report.tags, manifests=report.manifests, complete=report.complete
        )
        telemetry.RETENTION_TAGS.inc(report.tags)
        telemetry.RETENTION_MANIFESTS.inc(report.manifests)
        show_retention(report)
        telemetry.log.info(
            "retention ended",
            complete=report.complete,
            repositories=report.repositories,
            tags=report.tags,
            manifests=report.manifests,
            stayed=report.stayed,
            unread=report.unread_count,
        )
        self._ended(report)

    def last(self) -> RetentionReport | None:
        """Blocking: the report of the last round of any process; None without one. Raises `StoreError`."""
        return last_retention(self._rounds)

    def _now(self) -> float:
        return self._tools.now().later

    # ---------------------------------------------------------------------------------------------------------- plans

    def plan(self, has: Callable[[Repo], bool]) -> Generator[RepositoryPlan]:
        """Blocking: yields what a round would do now with each of these repositories, sorted. Changes nothing. Raises
        `StoreError`.
        """
        protected = self._tools.protected.look()
        for repo, policies in repositories(self._tools.parts, self._tools.rules):
            if has(repo):
                yield _result(RepositoryRetention(self._tools, repo, policies).plan(protected))

    # ------------------------------------------------------------------------------------------------------- schedule

    def due(self, plan: Plan) -> float:
        """Blocking: when the next round is due, in epoch seconds. Raises `StoreError`."""
        last = self.last()
        if last is not None:
            show_retention(last)
            return next_run(plan, Last(last.begun_at, last.begun_at, last.ended_at, last.failures), self._now(), 0.0)
        known = self._rounds.get(_KNOWN)
        since = known.get("since") if known else None
        if not isinstance(since, int | float):
            since = self._now()
            self._rounds.put(_KNOWN, {"since": since})
        return next_run(plan, Last(float(since)), self._now(), 0.0)

    def _is_due(self, plan: Plan) -> bool:
        return self.due(plan) <= self._tools.now().earlier

    async def run_when_due(self, plan: Plan) -> None:
        """Does the rounds that are due. Runs until cancelled."""
        if not self.has_rules:
            return

        async def go_on_if_due() -> None:
            if await asyncio.to_thread(self._is_due, plan):
                await self.go_on(plan)

        # not all the time at once: another process may do the next round
        await run_rounds(
            go_on_if_due, _LOOK_EVERY, failed="retention failed", crashed="retention crashed", sleep=self._sleep
        )


def _result(steps: Generator[None, None, RepositoryPlan]) -> RepositoryPlan:
    while True:
        try:
            next(steps)
        except StopIteration as stopped:
            result: RepositoryPlan = stopped.value
            return result


def last_retention(rounds: Records) -> RetentionReport | None:
    """Blocking: the report of the last round; None if there was none. Raises `StoreError`."""
    return RetentionReport.from_json(rounds.get(_ROUND))


def show_retention(report: RetentionReport) -> None:
    """Sets the metrics of the last round."""
    telemetry.RETENTION_UNREAD.set(report.unread_count)
    if report.complete:
        telemetry.RETENTION_COMPLETE.set(report.ended_at or report.begun_at)
