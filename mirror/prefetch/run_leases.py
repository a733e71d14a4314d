"""Leases by which replicas with disks of their own agree which of them runs a sync rule.

    run is due ── take ──> this replica runs it ── renew … ──┬─ success ──> done until the next regular time
                    │                                        └─ failure ──> given back: another replica may try
                    └──> another replica has it: asked again later; or has done it: not run here

Without Redis there are no leases. If Redis does not answer, each replica runs its rules itself, which costs upstream a
few more requests.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Final, Protocol

from mirror import telemetry
from mirror.errors import IndexUnavailable
from mirror.policy.schedule import OtherLease
from mirror.prefetch.sync_rules import SyncRule

#: Seconds that a lease lasts unless it is renewed, and seconds between two renewals.
_LASTS: Final = 120.0
_RENEW_EVERY: Final = 30.0


class Leases(Protocol):
    """Leases that the replicas share. All calls may raise `IndexUnavailable`."""

    async def take(self, name: str, seconds: float, *, done: bool = False) -> OtherLease | None:
        """Take or renew a lease for so many seconds from now. None if this replica has it now, otherwise the lease of
        another replica. `done` marks the run as finished.
        """

    async def give_back(self, name: str) -> None:
        """Give the lease up if this replica has it. Repeatable."""


class RunLeases:
    """The leases on runs of sync rules. Rules that every replica runs need none."""

    def __init__(self, leases: Leases | None) -> None:
        """`leases` is None if no other replica can be asked."""
        self._leases = leases

    async def other(self, rule: SyncRule) -> OtherLease | None:
        """Another replica's lease on this run. None if this replica has it now, or need not or cannot ask for it."""
        if self._leases is None or rule.every_replica:
            return None
        try:
            return await self._leases.take(rule.lease, _LASTS)
        except IndexUnavailable as error:
            telemetry.log.warning("sync runs without lease", rule=rule.name, reason=str(error))
            return None

    async def renew(self, rule: SyncRule, renewed: float) -> float:
        """Renew the lease of a run that lasts, unless that was done lately. `renewed` is when, by the monotonic clock;
        returns the new value.
        """
        now = time.monotonic()
        if self._leases is None or rule.every_replica or now - renewed <= _RENEW_EVERY:
            return renewed
        with suppress(IndexUnavailable):
            await self._leases.take(rule.lease, _LASTS)
        return now

    async def settle(self, rule: SyncRule, done_for: float) -> None:
        """After a run: keep the lease as done for so many seconds, so that no other replica repeats the run. If it is
        not positive, give the lease back.
        """
        if self._leases is None or rule.every_replica:
            return
        with suppress(IndexUnavailable):
            if done_for > 0:
                await self._leases.take(rule.lease, done_for, done=True)
            else:
                await self._leases.give_back(rule.lease)
