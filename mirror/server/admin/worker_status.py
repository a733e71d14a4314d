"""What all workers are doing: each publishes its own status and reads that of the others
(`store/local/status_board.py`).

    each second: own status has changed ─────────────────> published
                 another process has purged something ──> forgotten here too

A worker that is asked combines its own current status with what the others published last.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any, Final, Protocol

from mirror import telemetry
from mirror.errors import StoreError
from mirror.fills.flights import Flights
from mirror.values.timestamps import moment

_EVERY: Final = 1.0
#: Downloads that one worker lists one by one.
_MOST: Final = 500
#: States of an address, from best to worst.
_STATES: Final = ("ok", "failing", "throttled", "down")


class SharedStatus(Protocol):
    """A board on which the processes of one store publish their status. All calls block briefly and raise
    `StoreError`.
    """

    def open(self) -> None:
        """Begin to publish."""

    def say(self, what: Mapping[str, Any]) -> None:
        """Publish this status in place of the one before."""

    def others(self) -> list[dict[str, Any]]:
        """The last published status of every other live process."""

    def close(self) -> None:
        """Withdraw the published status."""


#: Status of one upstream as one process knows it: `name`, `endpoints`, `budget`.
UpstreamState = dict[str, Any]


class Workers:
    """The status of all workers; each process has one. `look` is called each second, in a thread."""

    def __init__(
        self,
        board: SharedStatus,
        flights: Flights,
        upstreams: Callable[[], list[UpstreamState]],
        *,
        look: Callable[[], None] = lambda: None,
    ) -> None:
        self._board = board
        self._flights = flights
        self._upstreams = upstreams
        self._look = look
        self._began = time.monotonic()
        self._said: dict[str, Any] | None = None

    @property
    def uptime(self) -> float:
        """Seconds since this process started."""
        return time.monotonic() - self._began

    async def run(self) -> None:
        """Publish this worker's status each second; until cancelled."""
        trouble = False
        try:
            await asyncio.to_thread(self._board.open)
            while True:
                try:
                    await self._tell()
                    await asyncio.to_thread(self._look)
                    trouble = False
                except StoreError as error:
                    if not trouble:
                        telemetry.log.warning("worker status cannot be written", reason=str(error))
                    trouble = True
                await asyncio.sleep(_EVERY)
        finally:
            self._board.close()

    async def _tell(self) -> None:
        now = self._own()
        # a changed uptime alone is not published
        if self._said is None or {**now, "uptime": 0} != {**self._said, "uptime": 0}:
            self._said = now
            await asyncio.to_thread(self._board.say, {**now, "at": time.time()})

    def _own(self) -> dict[str, Any]:
        return {
            "worker": os.getpid(),
            "uptime": round(self.uptime, 1),
            "flights": [
                {
                    "digest": str(flight.digest),
                    "repository": None if flight.on_behalf is None else str(flight.on_behalf),
                    "upstream": flight.upstream,
                    "received": flight.received,
                    "size": flight.size,
                    "followers": flight.followers,
                    "filling": flight.filled_here,
                }
                for flight in list(self._flights.active())[:_MOST]
            ],
            "upstreams": self._upstreams(),
        }

    async def _all(self) -> list[dict[str, Any]]:
        others = await asyncio.to_thread(self._board.others)
        return [self._own(), *(one for one in others if _makes_sense(one))]

    async def workers(self) -> list[dict[str, Any]]:
        """Each worker with its `worker` (process id), `uptime` in seconds, and number of `flights`. Raises
        `StoreError`.
        """
        return sorted(
            (
                {
                    "worker": one["worker"],
                    "uptime": round(one["uptime"] + max(0.0, time.time() - one.get("at", time.time())), 1),
                    "flights": len(one["flights"]),
                }
                for one in await self._all()
            ),
            key=lambda one: int(one["worker"]),
        )

    async def flights(self) -> list[dict[str, Any]]:
        """The downloads under way, merged over all workers: one for each digest and upstream. Raises `StoreError`."""
        found: dict[tuple[str, str], dict[str, Any]] = {}
        for said in await self._all():
            for flight in said["flights"]:
                known = found.setdefault(
                    (flight["upstream"], flight["digest"]), {**flight, "followers": 0, "workers": []}
                )
                known["workers"].append(said["worker"])
                known["followers"] += flight["followers"]
                known["received"] = max(known["received"], flight["received"])
                known["size"] = known["size"] if known["size"] is not None else flight["size"]
                known["filling"] = known["filling"] or flight["filling"]
        return list(found.values())

    async def upstreams(self) -> list[dict[str, Any]]:
        """The upstreams by name: the worst state that any worker knows of each address, and the latest budget. Raises
        `StoreError`.
        """
        merged: dict[str, dict[str, Any]] = {}
        for said in await self._all():
            for one in said["upstreams"]:
                _merge(merged.setdefault(one["name"], {"name": one["name"], "endpoints": {}, "budget": None}), one)
        return [_told(merged[name]) for name in sorted(merged)]


def _makes_sense(said: Mapping[str, Any]) -> bool:
    """True if a published status has the expected shape; another version may publish another one."""
    return (
        isinstance(said.get("worker"), int)
        and isinstance(said.get("uptime"), int | float)
        and isinstance(said.get("flights"), list)
        and isinstance(said.get("upstreams"), list)
    )


def _merge(into: dict[str, Any], one: Mapping[str, Any]) -> None:
    for endpoint in one["endpoints"]:
        known = into["endpoints"].get(endpoint["url"])
        logins = _merged_logins(known["logins"] if known else [], endpoint.get("logins") or [])
        if known is None or _STATES.index(endpoint["state"]) > _STATES.index(known["state"]):
            known = endpoint
        into["endpoints"][endpoint["url"]] = {**known, "logins": logins}
    budget = one["budget"]
    if budget and (into["budget"] is None or budget["seen"] > into["budget"]["seen"]):
        into["budget"] = budget


def _merged_logins(known: Sequence[Mapping[str, Any]], more: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The credential checks of one address, merged over two workers: first having credentials, then being let in with
    them. The latest result counts, because a worker that no longer calls the address keeps publishing its last result.
    """
    return [_merged_login(one, other) for one, other in zip_longest(known, more)]


def _merged_login(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if one is None or other is None:
        return one or other or {}
    worked_at = max(one["worked_at"], other["worked_at"])
    failing = [said for said in (one, other) if said["reason"] is not None and said["failed_at"] > worked_at]
    if not failing:
        return {**one, "reason": None, "worked_at": worked_at}
    latest = max(failing, key=lambda said: float(said["failed_at"]))
    return {**latest, "since": min(said["since"] for said in failing), "worked_at": worked_at}


def _failure(logins: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The first failing check, or None. The order matters: without credentials, being let in with them cannot
    succeed.
    """
    for one in logins:
        if one["reason"] is not None:
            return {"provider": one["provider"], "reason": one["reason"], "since": moment(one["since"])}
    return None


def _told(merged: Mapping[str, Any]) -> dict[str, Any]:
    now = time.time()
    endpoints = [
        {
            "url": one["url"],
            "state": one["state"],
            "failures": one["failures"],
            "retry_in": round(max(0.0, one["retry_at"] - now), 1),
            "credentials": _failure(one["logins"]),
        }
        for one in merged["endpoints"].values()
    ]
    budget = merged["budget"]
    if budget:
        resets = max(0.0, budget["seen"] + budget["window"] - now)
        budget = {**budget, "seen": moment(budget["seen"]), "resets_in": round(resets, 1)}
    return {"name": merged["name"], "state": _best(endpoints), "endpoints": endpoints, "budget": budget}


def _best(endpoints: Iterable[Mapping[str, Any]]) -> str:
    """The best state of all addresses: the upstream works as long as one address does."""
    return min((str(one["state"]) for one in endpoints), key=_STATES.index, default="ok")
