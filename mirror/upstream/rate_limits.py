"""The rate limits of each account at an upstream: the pulls that are left, and until when to leave upstream alone.

Registries count by account. So the limits that a caller with its own credentials has used up affect that caller alone,
not the mirror's own account and not other callers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mirror.aio.caches import LruCache
from mirror.aio.memo import MISSING, Memo
from mirror.errors import UpstreamThrottled
from mirror.policy.upstream.budget import LOOK_AGAIN, Budget, is_spent, newer, resets_in
from mirror.upstream.http.transport import Endpoint
from mirror.upstream.parameters import Clocks, Hooks

#: The most callers that are remembered; the least recently used ones are dropped.
_MOST: Final = 1000


@dataclass(slots=True)
class RateAccount:
    """The limits of one account. `strikes` counts the throttled answers in a row.

    `throttled_until` is in seconds of the clock that measures waits, not epoch seconds. `looked_at` is the time, in
    epoch seconds, when a call was last let through to find out whether pulls are left again.
    """

    budget: Budget | None = None
    looked_at: float = 0.0
    throttled_until: float = 0.0
    strikes: int = 0


class Accounts:
    """The accounts at one endpoint."""

    def __init__(self, endpoint: Endpoint, memo: Memo, hooks: Hooks, clocks: Clocks) -> None:
        """`memo` shares the budget of our own account with other processes."""
        self._upstream = endpoint.name
        self._key = f"budget {endpoint.name} {endpoint.bounds.base.public}"
        self._memo = memo
        self._hooks = hooks
        self._clocks = clocks
        self.own = RateAccount()
        self._callers: LruCache[str, RateAccount] = LruCache(_MOST, name="caller budgets")

    @property
    def current(self) -> RateAccount:
        """The account of the present caller, or the mirror's own."""
        whose = self._hooks.whose()
        return self._callers.setdefault(whose, RateAccount()) if whose else self.own

    async def within_budget(self) -> None:
        """Raises `UpstreamThrottled` while no pulls are left. One call a minute passes, to find out if that changed."""
        account = self.current
        if account is self.own:
            shared = await self._memo.get(self._key)
            account.budget = newer(account.budget, None if shared is MISSING else Budget.from_json(shared))
        now, budget = self._clocks.now(), account.budget
        if budget is None or not is_spent(budget, now):
            return
        if now - max(budget.seen_at, account.looked_at) < LOOK_AGAIN:
            raise self.spent()
        account.looked_at = now

    async def note_budget(self, budget: Budget) -> None:
        """Record the budget that upstream has just stated, and share it if it is that of our own account."""
        account = self.current
        account.budget = budget
        if account is not self.own:
            return
        self._hooks.on_budget(budget)
        # for other processes; each soon gets a budget from its own calls
        await self._memo.put(self._key, budget.to_json(), LOOK_AGAIN)

    def spent(self) -> UpstreamThrottled:
        """The error to raise if no pulls are left."""
        budget, wait = self.current.budget, LOOK_AGAIN
        if budget is not None:
            wait = resets_in(budget, self._clocks.now())
        of = "" if budget is None else f" of {budget.limit} in {budget.window:.0f} s"
        return UpstreamThrottled(
            f"{self._upstream} allows no more pulls{of}; more may be allowed in {wait:.0f} s",
            upstream=self._upstream,
            status=429,
            retry_after=wait,
        )

    def __repr__(self) -> str:
        return f"<Accounts at {self._upstream}, {len(self._callers)} callers>"
