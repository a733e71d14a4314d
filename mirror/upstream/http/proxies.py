"""HTTP proxies on the way to upstream: the choice of the proxy for a URL, and the tunnel through it.

    https   CONNECT host:port ──> 200 ──> TLS with the registry itself, which the proxy cannot read
    http    the whole URL in the request line (RFC 9112, 3.2.2), with the credentials for the proxy in a header

The proxy resolves names, so of the address rules only those about literal addresses apply: the proxy has to protect
the network behind it.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from yarl import URL

from mirror.oci.authorization import basic_authorization
from mirror.policy.upstream.no_proxy import bypasses_proxy
from mirror.policy.upstream.url_bounds import Url, UrlBounds, UrlRefused, parse_url
from mirror.upstream.http.dialing import dial

_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([0-9]{3})(?: |\r?\n)")
_LONGEST: Final = 16 * 1024


class ProxyFailed(OSError):
    """The proxy refuses the tunnel, or sent an answer that is not HTTP."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """One proxy, reached by plain HTTP. `repr` does not show its password."""

    url: Url
    username: str = ""
    password: str = field(default="", repr=False)

    @classmethod
    def parse(cls, text: str) -> Proxy:
        """Parse `http://[user:password@]host:port`; the scheme may be missing. Raises `UrlRefused`.

        The message does not quote the text.
        """
        parts = urlsplit(text if "://" in text else f"http://{text}")
        if parts.scheme != "http" or not parts.hostname:
            raise UrlRefused("a proxy must be http://host:port")
        bare = parts._replace(netloc=parts.netloc.rpartition("@")[2], path="", query="", fragment="")
        return cls(parse_url(bare.geturl()), unquote(parts.username or ""), unquote(parts.password or ""))

    @property
    def headers(self) -> dict[str, str]:
        """The headers with our credentials for this proxy (RFC 9110, 11.7.2); empty if there are none."""
        if not self.username:
            return {}
        return {"Proxy-Authorization": basic_authorization(self.username, self.password)}

    @property
    def bounds(self) -> UrlBounds:
        """The addresses that the proxy may have: as it is configured, private ones too, but no metadata server."""
        return UrlBounds(self.url, internal=True)


class Proxies:
    """Chooses the proxy for each URL. `proxies` are all that `choose` may return."""

    def __init__(self, choose: Callable[[Url], Proxy | None] = lambda url: None, proxies: Iterable[Proxy] = ()) -> None:
        self._choose = choose
        self._by_host = {proxy.url.host: proxy for proxy in proxies}

    def at(self, host: str) -> UrlBounds | None:
        """The address rules for `host` if it is one of these proxies; None for any other host."""
        proxy = self._by_host.get(host)
        return proxy.bounds if proxy else None

    @classmethod
    def given(cls, text: str | None) -> Proxies:
        """The proxies of a setting: None for no proxy, `env` for those of the environment, else one for every URL.

        Raises `UrlRefused`.
        """
        if text is None:
            return DIRECT
        if text == "env":
            return cls.environment(os.environ)
        proxy = Proxy.parse(text)
        return cls(lambda url: proxy, [proxy])

    @classmethod
    def environment(cls, environment: Mapping[str, str]) -> Proxies:
        """The proxies in HTTP_PROXY, HTTPS_PROXY and NO_PROXY, read once; names in lower case take precedence.

        Raises `UrlRefused`.
        """
        variables = {name.lower(): value for name, value in environment.items() if name.upper() == name}
        variables |= {name: value for name, value in environment.items() if name.lower() == name}
        urls = {scheme: variables.get(f"{scheme}_proxy") for scheme in ("http", "https")}
        proxies = {scheme: Proxy.parse(text) for scheme, text in urls.items() if text}
        no_proxy = variables.get("no_proxy", "")

        def choose(url: Url) -> Proxy | None:
            return None if bypasses_proxy(no_proxy, url.host, url.port) else proxies.get(url.scheme)

        return cls(choose, proxies.values())

    def for_url(self, url: Url) -> Proxy | None:
        """The proxy for this URL; None for a direct connection."""
        return self._choose(url)

    def options(self, url: Url) -> dict[str, Any]:
        """The keyword arguments that select the proxy of an aiohttp request to this URL; see also `headers`."""
        proxy = self.for_url(url)
        if proxy is None:
            return {}
        return {"proxy": URL(str(proxy.url), encoded=True), "proxy_headers": proxy.headers or None}

    def headers(self, url: Url) -> dict[str, str]:
        """The proxy's headers that a request itself must carry: only with http, where the proxy gets the request."""
        proxy = self.for_url(url)
        return proxy.headers if proxy and url.scheme == "http" else {}


DIRECT: Final = Proxies()


def open_tunnel(proxy: Proxy, host: str, port: int, timeout: float, clock: Callable[[], float]) -> socket.socket:
    """A connection to `host` through the proxy. Blocking.

    Connecting to the proxy and waiting for its answer take at most `timeout` seconds each. Raises `OSError`.
    """
    connection = dial(proxy.bounds, proxy.url.host, proxy.url.port, timeout, clock)
    try:
        authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}"]
        lines += [f"{name}: {value}" for name, value in proxy.headers.items()]
        connection.settimeout(timeout)
        connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
        status = _STATUS.match(_head(connection, clock() + timeout, clock))
        if status is None or status[1] != b"200":
            answer = status[1].decode() if status else "no HTTP"
            raise ProxyFailed(f"the proxy {proxy.url.authority} answers {answer}")
    except BaseException:
        connection.close()
        raise
    return connection


def _head(connection: socket.socket, deadline: float, clock: Callable[[], float]) -> bytes:
    """The head of the proxy's answer. It is read byte by byte: the bytes after it come from the registry."""
    head = bytearray()
    while not head.endswith((b"\r\n\r\n", b"\n\n")):
        remaining = deadline - clock()
        if remaining <= 0:
            raise TimeoutError("the proxy took too long")
        connection.settimeout(remaining)
        piece = connection.recv(1)
        if not piece or len(head) > _LONGEST:
            raise ProxyFailed("the proxy closed the connection" if not piece else "the answer of the proxy is too long")
        head += piece
    return bytes(head)
