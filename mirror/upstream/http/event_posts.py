"""Sends events to their endpoints: one POST each, on the event loop.

Redirects are not followed: the address is the operator's, and the signature is for it alone. Of an answer only the
status and `Retry-After` count. Its body is read up to 64 KiB, so that the connection can be used again.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from yarl import URL

from mirror.aio.closing import close_all
from mirror.errors import UpstreamError, reason_of
from mirror.policy.upstream.retrying import parse_retry_after
from mirror.policy.upstream.url_bounds import UrlBounds, UrlRefused, parse_url
from mirror.ports import Reply
from mirror.upstream.http.client import BoundedResolver, plain_session, read_limited, translated
from mirror.upstream.http.dialing import check_literal
from mirror.upstream.http.download import LARGEST_ERROR
from mirror.upstream.http.proxies import DIRECT, Proxies


@dataclass(frozen=True, slots=True)
class EventAddress:
    """Where an endpoint is; `repr` does not show it. `timeout` is in seconds."""

    url: str = field(repr=False)
    timeout: float = 10.0
    ca_file: Path | None = None
    proxies: Proxies = DIRECT


class EventPosts:
    """See `mirror.ports.EventSender`."""

    def __init__(self, addresses: Mapping[str, EventAddress], user_agent: str, now: Callable[[], float] = time.time):
        self._addresses = dict(addresses)
        self._user_agent = user_agent
        self._now = now
        self._sessions: dict[str, aiohttp.ClientSession] = {}

    def __repr__(self) -> str:
        return f"<EventPosts {', '.join(self._addresses)}>"

    async def send(self, endpoint: str, body: bytes, headers: Mapping[str, str]) -> Reply:
        address = self._addresses[endpoint]
        try:
            url = parse_url(address.url)
            bounds = UrlBounds(url, internal=True)
            check_literal(bounds, url.host)
            session = self._session(endpoint, address, bounds)
            own = {**headers, "User-Agent": self._user_agent, **address.proxies.headers(url)}
            async with (
                translated(endpoint, endpoint),
                asyncio.timeout(address.timeout),
                session.post(
                    URL(str(url), encoded=True),
                    data=body,
                    headers=own,
                    allow_redirects=False,
                    **address.proxies.options(url),
                ) as response,
            ):
                await read_limited(response, LARGEST_ERROR + 1)
                asked = parse_retry_after(response.headers.get("Retry-After"), self._now())
                return Reply(response.status, retry_after=asked)
        except UrlRefused:
            return Reply(None, "its URL is not allowed")
        except OSError as error:
            return Reply(None, f"its settings cannot be read: {reason_of(error)}")
        except UpstreamError as error:
            return Reply(None, str(error))

    def _session(self, endpoint: str, address: EventAddress, bounds: UrlBounds) -> aiohttp.ClientSession:
        if (known := self._sessions.get(endpoint)) is not None:
            return known
        session = plain_session(
            BoundedResolver(bounds, timeout=address.timeout, proxy_at=address.proxies.at),
            ssl.create_default_context(cafile=address.ca_file) if bounds.base.scheme == "https" else True,
            aiohttp.ClientTimeout(total=None),
        )
        self._sessions[endpoint] = session
        return session

    async def aclose(self) -> None:
        """Close the connections. Repeatable."""
        sessions, self._sessions = self._sessions, {}
        await close_all(*(session.close for session in sessions.values()))
