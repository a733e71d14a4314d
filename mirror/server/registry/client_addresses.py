"""The addresses of clients, also of those that come through proxies."""

from __future__ import annotations

from aiohttp import web

from mirror.policy.clients.client_address import client_address
from mirror.policy.clients.networks import UNIX, Networks


class ClientAddresses:
    """Finds the address of the client that sent a request. What `trusted` proxies say about it counts."""

    def __init__(self, trusted: Networks | None = None) -> None:
        self._trusted = trusted or Networks()
        self._trusts = bool(self._trusted)

    def __repr__(self) -> str:
        return f"<ClientAddresses {self._trusted!r}>"

    def of(self, request: web.BaseRequest) -> str:
        """The address for logs; that of the proxy if the proxy does not say for whom it asks. `unix` for a client of a
        unix socket.
        """
        peer = request.remote or UNIX
        return (self._asks_for(peer, request) or peer) if self._trusts else peer

    def known(self, request: web.BaseRequest) -> str | None:
        """The address for decisions; None if a proxy does not say for whom it asks."""
        return self._asks_for(request.remote or UNIX, request)

    def _asks_for(self, peer: str, request: web.BaseRequest) -> str | None:
        return client_address(peer, request.headers.getall("X-Forwarded-For", []), self._trusted)
