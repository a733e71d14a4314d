"""Pages beside the API: liveness, readiness, and metrics."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web

from mirror import telemetry
from mirror.server.registry.responses import INERT


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

    async def metrics(_request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=telemetry.render_metrics(), headers={**INERT, "Content-Type": telemetry.CONTENT_TYPE})

    return {"/livez": livez, "/readyz": readyz, "/metrics": metrics}
