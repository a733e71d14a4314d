"""HTTP proxies on the way to upstream: which one for a URL, and the tunnel through it.

    https   CONNECT host:port ──> 200 ──> TLS with the registry itself, which the proxy cannot look into
    http    the whole URL in the request line (RFC 9112, 3.2.2), and the proxy's own credentials beside it

Names are resolved by the proxy, so of the address rules only those about literal addresses still hold: what lies
behind the proxy is the proxy's to guard.
"""

from __future__ import annotations

import base64
import os
import re
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from yarl import URL

from mirror.policy.upstream.no_proxy import is_spared
from mirror.policy.upstream.url_bounds import Url, UrlBounds, UrlRefused, parse_url
from mirror.upstream.http.dialing import dial

__all__ = ["DIRECT", "Proxies", "Proxy", "ProxyFailed", "open_tunnel"]

_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([0-9]{3})(?: |\r?\n)")
_LONGEST: Final = 16 * 1024


class ProxyFailed(OSError):
    """The proxy gives no tunnel."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """One proxy, spoken to in plain HTTP; its password is not shown."""

    url: Url
    username: str = ""
    password: str = field(default="", repr=False)

    @classmethod
    def parse(cls, text: str) -> Proxy:
        """`http://[user:password@]host:port`. Raises `UrlRefused`, whose message quotes nothing."""
        parts = urlsplit(text if "://" in text else f"http://{text}")
        if parts.scheme != "http" or not parts.hostname:
            raise UrlRefused("a proxy is http://host:port")
        bare = parts._replace(netloc=parts.netloc.rpartition("@")[2], path="", query="", fragment="")
        return cls(parse_url(bare.geturl()), unquote(parts.username or ""), unquote(parts.password or ""))

    @property
    def headers(self) -> dict[str, str]:
        """What it is shown of us (RFC 9110, 11.7.2)."""
        if not self.username:
            return {}
        encoded = base64.b64encode(f"{self.username}:{self.password}".encode()).decode()
        return {"Proxy-Authorization": f"Basic {encoded}"}

    @property
    def bounds(self) -> UrlBounds:
        """Where it may be: it is configured, so anywhere but where metadata servers are."""
        return UrlBounds(self.url, internal=True)


class Proxies:
    """Which proxy is used for which URL."""

    def __init__(self, choose: Callable[[Url], Proxy | None] = lambda url: None, known: Iterable[Proxy] = ()) -> None:
        self._choose = choose
        self._known = {proxy.url.host: proxy for proxy in known}

    def at(self, host: str) -> UrlBounds | None:
        """Where one of these proxies may be; None for any other host."""
        proxy = self._known.get(host)
        return proxy.bounds if proxy else None

    @classmethod
    def given(cls, text: str | None) -> Proxies:
        """None: none. `env`: as the environment says. Else this one, for everything. Raises `UrlRefused`."""
        if text is None:
            return DIRECT
        if text == "env":
            return cls.environment(os.environ)
        proxy = Proxy.parse(text)
        return cls(lambda url: proxy, [proxy])

    @classmethod
    def environment(cls, environment: Mapping[str, str]) -> Proxies:
        """HTTP_PROXY, HTTPS_PROXY and NO_PROXY, in lower case first, as they are now. Raises `UrlRefused`."""
        variables = {name.lower(): value for name, value in environment.items() if name.upper() == name}
        variables |= {name: value for name, value in environment.items() if name.lower() == name}
        named = {scheme: variables.get(f"{scheme}_proxy") for scheme in ("http", "https")}
        proxies = {scheme: Proxy.parse(text) for scheme, text in named.items() if text}
        spared = variables.get("no_proxy", "")

        def choose(url: Url) -> Proxy | None:
            return None if is_spared(spared, url.host, url.port) else proxies.get(url.scheme)

        return cls(choose, proxies.values())

    def for_url(self, url: Url) -> Proxy | None:
        """None: directly."""
        return self._choose(url)

    def options(self, url: Url) -> dict[str, Any]:
        """What an aiohttp request to this URL is to be given, besides `headers`."""
        proxy = self.for_url(url)
        if proxy is None:
            return {}
        return {"proxy": URL(str(proxy.url), encoded=True), "proxy_headers": proxy.headers or None}

    def headers(self, url: Url) -> dict[str, str]:
        """What is to be added to a request's own headers: those for the proxy, where the request itself goes to it."""
        proxy = self.for_url(url)
        return proxy.headers if proxy and url.scheme == "http" else {}


DIRECT: Final = Proxies()


def open_tunnel(proxy: Proxy, host: str, port: int, timeout: float, clock: Callable[[], float]) -> socket.socket:
    """Blocking: a connection to `host` through the proxy, within about `timeout` seconds. Raises `OSError`."""
    connection = dial(proxy.bounds, proxy.url.host, proxy.url.port, timeout, clock)
    try:
        authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}"]
        lines += [f"{name}: {value}" for name, value in proxy.headers.items()]
        connection.settimeout(timeout)
        connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
        status = _STATUS.match(_head(connection, clock() + timeout, clock))
        if status is None or status[1] != b"200":
            said = status[1].decode() if status else "no HTTP"
            raise ProxyFailed(f"the proxy {proxy.url.authority} answers {said}")
    except BaseException:
        connection.close()
        raise
    return connection


def _head(connection: socket.socket, deadline: float, clock: Callable[[], float]) -> bytes:
    """Byte by byte: what follows the head is the registry's already."""
    head = bytearray()
    while not head.endswith((b"\r\n\r\n", b"\n\n")):
        remaining = deadline - clock()
        if remaining <= 0:
            raise TimeoutError("the proxy took too long")
        connection.settimeout(remaining)
        piece = connection.recv(1)
        if not piece or len(head) > _LONGEST:
            raise ProxyFailed("the proxy closed the connection" if not piece else "the proxy answers without end")
        head += piece
    return bytes(head)
