"""What an upstream lets each account do: how many pulls are left, and until when it is to be left alone.

Registries count by account. So what a caller with credentials of their own has used up is theirs alone, and neither the
mirror's own account nor another caller goes without for it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from mirror.aio.latest import put_latest
from mirror.aio.memo import MISSING, Memo
from mirror.errors import UpstreamThrottled
from mirror.policy.upstream.budget import LOOK_AGAIN, Budget, is_spent, newer, resets_in

__all__ = ["Accounts", "RateAccount"]

#: Callers that are kept in mind, least recent ones leave.
_MOST: Final = 1000


@dataclass(slots=True)
class RateAccount:
    """`held_until` is in seconds of the clock that tells waits, `looked_at` in epoch seconds: when a call last went out
    to see whether there are pulls left again.
    """

    budget: Budget | None = None
    looked_at: float = 0.0
    held_until: float = 0.0
    strikes: int = 0


class Accounts:
    """Of one upstream, at one address."""

    def __init__(
        self,
        upstream: str,
        address: str,
        memo: Memo,
        *,
        whose: Callable[[], str],
        now: Callable[[], float],
        on_budget: Callable[[Budget], None],
    ) -> None:
        """`memo` tells other processes of our own budget, at `address`. `whose` says for which caller something is
        asked, "" where it is for nobody but us; `on_budget` is told what is left to be pulled by us. `now` is epoch
        seconds.
        """
        self._upstream = upstream
        self._key = f"budget {upstream} {address}"
        self._memo = memo
        self._whose = whose
        self._now = now
        self._on_budget = on_budget
        self.own = RateAccount()
        self._callers: OrderedDict[str, RateAccount] = OrderedDict()

    @property
    def current(self) -> RateAccount:
        """Of whoever something is asked for now."""
        whose = self._whose()
        if not whose:
            return self.own
        account = self._callers.get(whose) or RateAccount()
        put_latest(self._callers, whose, account, _MOST)
        return account

    async def within_budget(self) -> None:
        """Raises `UpstreamThrottled` while nothing is left to be pulled; one call a minute goes out to see."""
        account = self.current
        if account is self.own:
            shared = await self._memo.get(self._key)
            account.budget = newer(account.budget, None if shared is MISSING else Budget.from_json(shared))
        now, budget = self._now(), account.budget
        if budget is None or not is_spent(budget, now):
            return
        if now - max(budget.seen_at, account.looked_at) < LOOK_AGAIN:
            raise self.spent()
        account.looked_at = now

    async def note_budget(self, budget: Budget) -> None:
        """Upstream has just said so."""
        account = self.current
        account.budget = budget
        if account is not self.own:
            return
        self._on_budget(budget)
        # for other processes; each of them has news of its own soon enough
        await self._memo.put(self._key, budget.to_json(), LOOK_AGAIN)

    def spent(self) -> UpstreamThrottled:
        """The error that says so."""
        budget, wait = self.current.budget, LOOK_AGAIN
        if budget is not None:
            wait = resets_in(budget, self._now())
        of = "" if budget is None else f" of {budget.limit} in {budget.window:.0f} s"
        return UpstreamThrottled(
            f"{self._upstream} allows no more pulls{of}; it may be {wait:.0f} s until it does",
            upstream=self._upstream,
            status=429,
            retry_after=wait,
        )
