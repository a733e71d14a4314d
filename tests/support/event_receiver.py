"""An endpoint that is sent events, and takes them, or does what a test says.

with EventReceiver(folder) as receiver:         # the fixture `receiver`
    ... a mirror with `receiver.settings()` under `[events]` ...
    await receiver.got(lambda events: len(events) == 2)
    receiver.answer(reply(503, b""))        # every request from now on
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from mirror.policy.events.signature import SIGNATURE, TIMESTAMP, signed_headers
from tests.support.live_mirror import until
from tests.support.scripted import Request, Script, Scripted, reply

_SECRET: Final = b"between us"


class EventReceiver:
    """Collects what it has answered with 2xx, in `events`; `refused` counts the other requests."""

    def __init__(self, folder: Path) -> None:
        self._answer: Script = reply(204, b"")
        self._lock = threading.Lock()
        self._server = Scripted()
        self.events: list[dict[str, Any]] = []
        self.seen: list[dict[str, Any]] = []
        self.problems: list[str] = []
        self.secret_file = folder / "event-secret"
        self.secret_file.write_bytes(_SECRET + b"\n")

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"{self._server.url}/hook?token=hidden"

    def settings(self, **more: Any) -> dict[str, Any]:
        """A `[[events.endpoint]]`."""
        return {"name": "ci", "url": self.url, "secret_file": self.secret_file, "timeout": 5, **more}

    def answer(self, script: Script) -> None:
        """What is answered from now on."""
        self._answer = script

    def of(self, *types: str) -> list[dict[str, Any]]:
        """The events of these types that were taken, in order."""
        with self._lock:
            return [event for event in self.events if event["type"] in types]

    async def got(self, enough: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
        """What was taken, once it is enough."""
        await until(lambda: enough(self.events) or None, lambda: f"taken: {self.events}, {self.problems}")
        assert not self.problems
        return list(self.events)

    def _take(self, request: Request) -> Script:
        event = json.loads(request.body)
        with self._lock:
            self.seen.append(event)
            self._check(request, event)
            script = self._answer
            if isinstance(script[0], bytes) and script[0].startswith(b"HTTP/1.1 2"):
                self.events.append(event)
        return script

    def _check(self, request: Request, event: dict[str, Any]) -> None:
        at = int(request.header(TIMESTAMP) or 0)
        if request.header(SIGNATURE) != signed_headers([_SECRET], at, request.body)[SIGNATURE]:
            self.problems.append(f"wrong signature of {event}")
        if event["specversion"] != "1.0" or not all(event.get(name) for name in ("id", "source", "type", "time")):
            self.problems.append(f"no CloudEvent: {event}")
        if not (request.header("Content-Type") or "").startswith("application/cloudevents+json"):
            self.problems.append(f"wrong type: {request.header('Content-Type')}")

    def __enter__(self) -> EventReceiver:
        self._server.__enter__()
        self._server.on("/hook", self._take)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.__exit__(kind, error, trace)
