"""A client of a mirror in a process, in a thread of its own."""

from __future__ import annotations

import http.client
import threading

from tests.support.mirror_process import MirrorProcess
from tests.support.process import PATIENCE


class WaitingClient:
    """A client whose answer comes only in part."""

    def __init__(self, mirror: MirrorProcess, target: str, headers: dict[str, str] | None = None) -> None:
        self._arguments = mirror, target, headers or {}
        self.body: bytes | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        mirror, target, headers = self._arguments
        try:
            self.body = mirror.get(target, headers)[2]
        except (OSError, http.client.HTTPException):
            self.body = None

    def __enter__(self) -> WaitingClient:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
