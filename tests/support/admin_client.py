"""One request to a mirror's admin socket, on a connection of its own: whichever worker is there answers."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from http.client import HTTPMessage
from pathlib import Path
from typing import Any

from mirror.process.listeners import connect_unix
from tests.support.process import PATIENCE


@dataclass(frozen=True)
class AdminReply:
    """An answer; `worker` is the process that gave it."""

    status: int
    headers: HTTPMessage
    json: Any

    @property
    def worker(self) -> int:
        """Out of the request's id."""
        return int(self.headers["X-Request-Id"].split("-")[1], 16)

    @property
    def code(self) -> str:
        """Of an error."""
        [error] = self.json["errors"]
        assert error["message"], self
        return str(error["code"])


def ask_admin(
    path: Path, method: str, target: str, body: object = None, *, headers: dict[str, str] | None = None
) -> AdminReply:
    """`body` is sent as JSON, bytes as they are."""
    connection = http.client.HTTPConnection("localhost")
    connection.sock = connect_unix(path, timeout=PATIENCE)
    try:
        sent = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection.request(method, target, body=sent, headers=headers or {})
        answer = connection.getresponse()
        return AdminReply(answer.status, answer.headers, json.loads(answer.read()))
    finally:
        connection.close()
