"""Pages beside the API: is it alive, may it have traffic, what has it counted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web

from mirror import telemetry
from mirror.server.registry.responses import INERT

__all__ = ["Readiness", "health_pages"]


@dataclass(slots=True)
class Readiness:
    """Whether new requests are welcome. With upstreams or Redis down they are: the cache still serves."""

    accepting: bool = True

    def drain(self) -> None:
        """The mirror is stopping: load balancers should look elsewhere."""
        self.accepting = False


def health_pages(
    readiness: Readiness, *, silence: Callable[[], float] = lambda: 0.0, longest: float = float("inf")
) -> dict[str, Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]]:
    """`/livez`: the event loops turn. `/readyz`: 200, or 503 while draining. `/metrics`: Prometheus text.

    `silence` tells for how many seconds the loop of some worker has stood still: from `longest` on this is no life.
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
