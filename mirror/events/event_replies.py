"""The JSON forms of events that wait, for the command line and the admin API."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Final

from typing_extensions import TypedDict

from mirror.ports import Backlog, Deliveries, WaitingEvent
from mirror.values.json_types import Count, Timestamp, about
from mirror.values.timestamps import format_moment, moment

#: Events that are listed at most.
MOST_LISTED: Final = 10_000


class EventEndpointJson(TypedDict):
    """What waits for an endpoint."""

    endpoint: str
    configured: Annotated[bool, about("False: nothing is sent to it; what waits for it is dropped when it is too old.")]
    waiting: Count
    dead: Annotated[Count, about("Events that are sent again only on request.")]
    lost: Annotated[
        Count, about("Events that were given up because too many were waiting, and of which it was not told.")
    ]
    oldest: Annotated[Timestamp | None, about("When the oldest waiting event was made.")]


class WaitingEventJson(TypedDict):
    """An event that an endpoint has not taken yet."""

    id: str
    type: str
    endpoint: str
    about: Annotated[str, about("What it is ordered by, mostly its repository.")]
    made: Timestamp
    dead: bool
    attempts: Count
    error: Annotated[str | None, about("How the last attempt ended.")]


class EventsJson(TypedDict):
    """Events that wait, and dead ones."""

    endpoints: list[EventEndpointJson]
    events: Annotated[list[WaitingEventJson], about("The oldest first.")]


class ResentJson(TypedDict):
    """What will be sent again."""

    resent: Count


def events_json(
    outbox: Deliveries, configured: Collection[str], *, endpoint: str | None, dead: bool | None, most: int
) -> EventsJson:
    """Blocking: what waits; `dead` says whether dead events, waiting ones, or both are listed. Raises `StoreError`."""
    return {
        "endpoints": [_endpoint_json(each, configured) for each in outbox.backlog(configured)],
        "events": [_event_json(each) for each in outbox.listed(endpoint=endpoint, dead=dead, most=most)],
    }


def nothing_json() -> EventsJson:
    """What waits if there is no endpoint."""
    return {"endpoints": [], "events": []}


def _endpoint_json(backlog: Backlog, configured: Collection[str]) -> EventEndpointJson:
    return {
        "endpoint": backlog.endpoint,
        "configured": backlog.endpoint in configured,
        "waiting": backlog.waiting,
        "dead": backlog.dead,
        "lost": backlog.lost,
        "oldest": moment(backlog.oldest_at),
    }


def _event_json(event: WaitingEvent) -> WaitingEventJson:
    return {
        "id": event.id,
        "type": event.type,
        "endpoint": event.endpoint,
        "about": event.key,
        "made": format_moment(event.made_at),
        "dead": event.dead,
        "attempts": event.attempts,
        "error": event.error or None,
    }
