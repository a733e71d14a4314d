"""The operations of the admin API on retention."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor
from typing import Final

from mirror.aio.bounded_threads import in_thread
from mirror.errors import AlreadyRunning, RequestError
from mirror.policy.routing import RoutingTable
from mirror.policy.schedule import Plan
from mirror.policy.selection import select
from mirror.retention.retention_replies import (
    RetentionJson,
    RetentionPlanJson,
    RetentionRoundJson,
    repository_plan_json,
    retention_round_json,
)
from mirror.retention.retention_schedule import Retention, RoundWanted
from mirror.values.timestamps import moment

#: Tags, and manifests, of which an answer says what would happen to them.
_MOST_LISTED: Final = 1000


class RetentionAdmin:
    """Rounds of retention, and plans of them."""

    def __init__(
        self, retention: Retention, table: RoutingTable, plan: Plan | None, threads: Executor | None = None
    ) -> None:
        """`plan` is when rounds are due; None: never. Records are read in `threads`; None: in those of the event
        loop.
        """
        self._retention = retention
        self._table = table
        self._plan = plan
        self._threads = threads

    def __repr__(self) -> str:
        return f"<RetentionAdmin {self._plan}>"

    async def last(self) -> RetentionJson:
        """The last round, and when the next one is due. Raises `StoreError`."""
        last = await in_thread(self._threads, self._retention.last)
        due = None
        if self._plan is not None and self._retention.has_rules:
            due = await in_thread(self._threads, self._retention.due, self._plan)
        return {"last": None if last is None else retention_round_json(last), "next": moment(due)}

    async def run(self, query: Mapping[str, str], by: str) -> RetentionRoundJson:
        """Does a round, of the repositories like `search`, or of all. Raises `AlreadyRunning`, `RequestError`,
        `StoreError`.
        """
        pattern = query.get("search", "")
        has = select(pattern, self._table).has if pattern else None
        report = await self._retention.run(RoundWanted(by, has))
        if report is None:
            raise AlreadyRunning("a round of retention is running already")
        return retention_round_json(report)

    async def plan(self, query: Mapping[str, str]) -> RetentionPlanJson:
        """What a round would do with one repository. Raises `RequestError`, `StoreError`."""
        name = query.get("repository", "")
        selection = select(name, self._table)
        if not name or "*" in name or "?" in name or selection.tag is not None:
            raise RequestError("repository: name one repository, such as corp/team/app")
        planned = await in_thread(self._threads, lambda: list(self._retention.plan(selection.has)))
        return {"repositories": [repository_plan_json(each, _MOST_LISTED) for each in planned]}
