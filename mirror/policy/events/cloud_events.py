"""Events as CloudEvents 1.0 in structured JSON (CloudEvents, JSON event format 1.0, section 3)."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Final

from mirror.policy.events.changes import Event

#: The media type of one event in structured JSON.
MEDIA_TYPE: Final = "application/cloudevents+json; charset=utf-8"


def cloud_event(event: Event, *, id: str, source: str, at: float, sequence: str = "") -> str:
    """The event as it is sent, as JSON text. `source` is a URI reference that names the mirror; `at` is in epoch
    seconds. Together with `source`, `id` is unique. `sequence` grows with each event of one repository (CloudEvents,
    "Sequence" extension): it is compared as text. Empty: the event has no place in an order.
    """
    return json.dumps(
        {
            "specversion": "1.0",
            "id": id,
            "source": source,
            "type": event.type,
            "subject": event.subject,
            "time": _time(at),
            **({"sequence": sequence} if sequence else {}),
            "datacontenttype": "application/json",
            "data": dict(event.data),
        },
        ensure_ascii=False,
        separators=(",", ":"),
    )


def _time(seconds: float) -> str:
    """RFC 3339 with milliseconds, as CloudEvents wants it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
