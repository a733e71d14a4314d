"""The operations of the admin API on events that wait."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from typing import Final

from mirror.errors import RequestError
from mirror.events.event_replies import MOST_LISTED, EventsJson, ResentJson, events_json, nothing_json
from mirror.ports import Deliveries
from mirror.server.admin.query_values import boolean, number

#: Events that are listed if the request does not say how many.
_LISTED: Final = 100


class EventAdmin:
    """What waits for endpoints. `outbox` is None if there is none."""

    def __init__(self, outbox: Deliveries | None, endpoints: Collection[str]) -> None:
        self._outbox = outbox
        self._endpoints = tuple(endpoints)

    def __repr__(self) -> str:
        return f"<EventAdmin {', '.join(self._endpoints)}>"

    async def events(self, query: Mapping[str, str]) -> EventsJson:
        """What waits. Raises `RequestError`."""
        limit = number(query, "limit", _LISTED, 1, MOST_LISTED)
        if self._outbox is None:
            return nothing_json()
        dead = boolean(query, "dead") if "dead" in query else None
        endpoint = query.get("endpoint")
        return await asyncio.to_thread(
            events_json, self._outbox, self._endpoints, endpoint=endpoint, dead=dead, most=limit
        )

    async def resend(self, query: Mapping[str, str]) -> ResentJson:
        """Sends dead events again. Raises `RequestError` if the endpoint is unknown."""
        endpoint = query.get("endpoint")
        if endpoint is not None and endpoint not in self._endpoints:
            raise RequestError(f"{endpoint[:80]} is no endpoint that is configured here")
        if self._outbox is None:
            return {"resent": 0}
        return {"resent": await asyncio.to_thread(self._outbox.resend, id=query.get("id"), endpoint=endpoint)}
