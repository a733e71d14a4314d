"""Pages beside the API: liveness, readiness, and metrics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from mirror import telemetry
from mirror.server.registry.responses import INERT

#: A rest is so many times as long as the work before it: whoever asks all the time gets a quarter of a thread.
_REST: Final = 3.0


@dataclass(slots=True)
class Readiness:
    """True in `accepting` while the mirror wants new requests. It does so with upstreams or Redis down: the cache still
    serves.
    """

    accepting: bool = True

    def drain(self) -> None:
        """Stop accepting: the mirror is shutting down, and load balancers should use another instance."""
        self.accepting = False


def health_pages(
    readiness: Readiness, *, silence: Callable[[], float] = lambda: 0.0, longest: float = float("inf")
) -> dict[str, Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]]:
    """`/livez`: 200, or 503 if an event loop stands still. `/readyz`: 200, or 503 while draining. `/metrics`:
    Prometheus text.

    `silence` returns for how many seconds the slowest worker's event loop has not turned; above `longest`, `/livez`
    fails.
    """

    async def livez(_request: web.BaseRequest) -> web.StreamResponse:
        silent = silence()
        if silent > longest:
            text = f"a worker's event loop has not turned for {silent:.0f} s\n"
            return web.Response(status=503, text=text, headers=INERT)
        return web.Response(text="ok\n", headers=INERT)

    async def readyz(_request: web.BaseRequest) -> web.StreamResponse:
        if readiness.accepting:
            return web.Response(text="ready\n", headers=INERT)
        return web.Response(status=503, text="draining\n", headers=INERT)

    return {"/livez": livez, "/readyz": readyz, "/metrics": MetricsPage(lambda: telemetry.render_metrics())}


class MetricsPage:
    """`/metrics`, which anybody may ask for. To add up the counters of all workers takes tenths of a second: so that is
    done in a thread, and once for all who have asked before it begins. Then it rests, however many ask.

        asked ──> its turn ── a text that was begun after that ──> given
                     └── rest ──> counters added up, in a thread ──> given, also to those who have asked meanwhile
    """

    def __init__(
        self,
        render: Callable[[], bytes],
        *,
        clock: Callable[[], float] = time.monotonic,
        worked: Callable[[], float] = time.thread_time,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        """`render` blocks. `clock` counts seconds; `worked`, in the thread that calls it, those of its work alone: on
        a machine that is overloaded, a rest must not last until whoever asks has given up.
        """
        self._render = render
        self._clock = clock
        self._worked = worked
        self._sleep = sleep
        #: For nothing else: all other threads may be waiting for a disk that hangs, which the metrics must show.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="metrics")
        self._turn = asyncio.Lock()
        #: How many have asked, and how many of them had done so when `_text` was begun.
        self._asked = self._answered = 0
        self._text = b""
        self._rests_until = float("-inf")

    def __repr__(self) -> str:
        return f"<MetricsPage, asked for {self._asked} times>"

    async def __call__(self, _request: web.BaseRequest) -> web.StreamResponse:
        """The metrics, none of them older than the request."""
        headers = {**INERT, "Content-Type": telemetry.CONTENT_TYPE}
        return web.Response(body=await self._current(), headers=headers)

    async def _current(self) -> bytes:
        self._asked += 1
        number = self._asked
        async with self._turn:
            if self._answered < number:
                await self._make()
            return self._text

    async def _make(self) -> None:
        if (rest := self._rests_until - self._clock()) > 0:
            await self._sleep(rest)
        asked = self._asked
        self._text, worked = await asyncio.get_running_loop().run_in_executor(self._thread, self._timed)
        self._answered = asked
        self._rests_until = self._clock() + _REST * worked

    def _timed(self) -> tuple[bytes, float]:
        """Blocking: the text, and how many seconds of work it was."""
        began = self._worked()
        text = self._render()
        return text, self._worked() - began
