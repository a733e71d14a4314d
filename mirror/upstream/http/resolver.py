"""A resolver for aiohttp, with the same address rules as in `dialing.py`.

It is a separate module because aiohttp takes a tenth of a second to import, and most commands contact no registry.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from mirror.policy.upstream.url_bounds import UrlBounds
from mirror.upstream.http.dialing import refused


class BoundedResolver(AbstractResolver):
    """The system's resolver (in a thread), without the addresses that `bounds` forbids.

    `proxy_at` gives the address rules for a host that is one of our proxies, None for any other. `timeout` is in
    seconds.
    """

    def __init__(
        self,
        bounds: UrlBounds,
        inner: AbstractResolver | None = None,
        *,
        timeout: float = 5.0,
        proxy_at: Callable[[str], UrlBounds | None] = lambda host: None,
    ) -> None:
        self._bounds = bounds
        self._proxy_at = proxy_at
        self._inner = inner or ThreadedResolver()
        self._timeout = timeout

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The permitted addresses of `host`.

        Raises `OSError`: `TimeoutError` after `timeout` seconds, `AddressRefused` if every address is forbidden.
        """
        async with asyncio.timeout(self._timeout):
            resolved = await self._inner.resolve(host, port, family)
        bounds = self._proxy_at(host) or self._bounds
        permitted = [entry for entry in resolved if bounds.permits(host, entry["host"])]
        if resolved and not permitted:
            raise refused(host)
        return permitted

    async def close(self) -> None:
        """Close the inner resolver. Repeatable."""
        await self._inner.close()
