"""The HTTP client for small answers on the event loop: manifests, tags, referrers and tokens.

It is aiohttp, with every feature off that changes bytes or carries state from one request to another.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Final, Literal

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from yarl import URL

from mirror.errors import UpstreamError, UpstreamInvalid, UpstreamOffLimits, UpstreamTimeout, UpstreamUnavailable
from mirror.oci.coding import decode
from mirror.oci.manifest import LARGEST
from mirror.policy.upstream.url_bounds import Origin, Url, UrlBounds, UrlRefused, parse_url, surviving_headers
from mirror.upstream.http.dialing import AddressRefused, check_literal, no_tls, refused
from mirror.upstream.http.download import CONTENT, LARGEST_ERROR, REDIRECTS, Answer, DialFailed, DialTimedOut
from mirror.upstream.http.page_file import PageFile
from mirror.upstream.http.throttled_hosts import ThrottledHosts
from mirror.upstream.http.transport import Endpoint

#: Signed URLs in `Location` are longer than the 8 KiB that aiohttp allows by default.
_LONGEST_FIELD: Final = 32 * 1024

#: Called for each request to upstream with its purpose, its status (None: no answer) and the seconds until then.
Observe = Callable[[str, int | None, float], None]


class AnswerTooLarge(UpstreamInvalid):
    """An answer that is larger than its limit."""


#: Reads the content of an answer. Returns it without its `Content-Encoding`, and as it was sent.
ReadContent = Callable[[aiohttp.ClientResponse], Awaitable[tuple[bytes, bytes]]]


class HttpClient:
    """Sends small requests to one upstream and follows redirects, each of which is checked against the URL rules.

    `hosts` are the hosts that asked to be left alone.
    """

    def __init__(self, endpoint: Endpoint, hosts: ThrottledHosts) -> None:
        self._endpoint = endpoint
        self._hosts = hosts
        self._session: aiohttp.ClientSession | None = None

    def session(self) -> aiohttp.ClientSession:
        """The session, opened when it is first needed. To be called with the event loop running."""
        if self._session is None:
            self._session = open_session(self._endpoint)
        return self._session

    async def send(
        self,
        method: Literal["GET", "HEAD"],
        text: str,
        headers: Mapping[str, str],
        read: ReadContent,
        passes: Mapping[Origin, str],
    ) -> Answer:
        """Send a request to the URL `text`, and follow redirects. `read` reads the content if the status is in
        `CONTENT`; of any other answer the first 64 KiB are read.

        `passes` are the `Authorization` headers for other origins, to which a redirect may lead. Raises what
        `Transfer.get` raises, and what `read` raises.
        """
        endpoint, hops = self._endpoint, 0
        url: Url | None = None
        try:
            async with translated(endpoint.name, endpoint.described), asyncio.timeout(endpoint.timeouts.answer):
                url = parse_url(text)
                while True:
                    check_literal(endpoint.bounds, url.host)
                    async with self._request(method, url, headers) as response:
                        if response.status in CONTENT:
                            content, sent = await read(response)
                            return Answer(response.status, response.headers, url, content, sent=sent)
                        if response.status not in REDIRECTS:
                            content = await read_limited(response, LARGEST_ERROR + 1)
                            return Answer(response.status, response.headers, url, content, sent=content)
                    entered = endpoint.bounds.next_hop(url, response.headers.get("Location"), hops)
                    headers = surviving_headers(headers, url, entered, passes)
                    url, hops = entered, hops + 1
                    self._hosts.check(url)
        except UrlRefused as error:
            raise endpoint.invalid(str(error)) from error
        except UpstreamError as error:
            error.elsewhere = url is not None and not endpoint.is_at(url)
            raise

    async def send_once(
        self, method: str, text: str, headers: Mapping[str, str], content: bytes = b"", *, patience: float | None = None
    ) -> Answer:
        """Send a request with a small body to the URL `text`. No redirect is followed: it is the answer. Of any answer
        the first `LARGEST` bytes are read. `patience` is in seconds (None: that of the endpoint). Raises what `send`
        raises.
        """
        endpoint = self._endpoint
        try:
            async with (
                translated(endpoint.name, endpoint.described),
                asyncio.timeout(patience or endpoint.timeouts.answer),
            ):
                url = parse_url(text)
                check_literal(endpoint.bounds, url.host)
                self._hosts.check(url)
                async with self._request(method, url, headers, content or None) as response:
                    read = await read_limited(response, LARGEST + 1)
                    return Answer(response.status, response.headers, url, read, sent=read)
        except UrlRefused as error:
            raise endpoint.invalid(str(error)) from error

    def _request(
        self, method: str, url: Url, headers: Mapping[str, str], content: bytes | None = None
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """One request, by the endpoint's proxy and with its certificate. No redirect is followed."""
        endpoint = self._endpoint
        options = endpoint.proxies.options(url)
        if identity := endpoint.identity_for(url):
            options["ssl"] = identity
        return self.session().request(
            method,
            URL(str(url), encoded=True),
            headers={**headers, **endpoint.proxies.headers(url)},
            data=content,
            allow_redirects=False,
            **options,
        )

    def whole(self, limit: int) -> ReadContent:
        """Reads and decodes a content of at most `limit` bytes. Raises `AnswerTooLarge`."""

        async def read(response: aiohttp.ClientResponse) -> tuple[bytes, bytes]:
            sent = await read_limited(response, limit + 1)
            content = decode(sent, response.headers.get("Content-Encoding"), limit + 1)
            if max(len(sent), len(content)) > limit:
                raise self._too_large(f"the answer is larger than {limit} bytes", response)
            return content, sent

        return read

    def into(self, page: PageFile) -> ReadContent:
        """Writes the decoded content into `page`, and returns none. Raises `AnswerTooLarge`, `StoreError`."""

        async def read(response: aiohttp.ClientResponse) -> tuple[bytes, bytes]:
            page.restart()
            async with aclosing(_pieces(response)) as pieces:
                async for piece in pieces:
                    if not await page.write(piece):
                        response.close()
                        raise self._too_large("the tag list is larger than tag_lists_max_size", response)
            return b"", b""

        return read

    async def aclose(self) -> None:
        """Close the connections. Repeatable."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _too_large(self, what: str, response: aiohttp.ClientResponse) -> AnswerTooLarge:
        name = self._endpoint.name
        return AnswerTooLarge(f"{name}: {what}", upstream=name, status=response.status)

    def __repr__(self) -> str:
        state = "closed" if self._session is None else "open"
        return f"<HttpClient {self._endpoint.described} {state}>"


def open_session(endpoint: Endpoint) -> aiohttp.ClientSession:
    """A new session for one endpoint, which the caller closes. To be called with the event loop running.

    See `plain_session`.
    """
    tls, connect, read = endpoint.tls, endpoint.timeouts.connect, endpoint.timeouts.answer
    return plain_session(
        BoundedResolver(endpoint.bounds, timeout=connect, proxy_at=endpoint.proxies.at),
        tls.context if endpoint.bounds.base.scheme == "https" else tls.given or True,
        aiohttp.ClientTimeout(total=None, connect=None, sock_connect=connect, sock_read=read),
    )


def plain_session(
    resolver: AbstractResolver, tls: ssl.SSLContext | bool, timeout: aiohttp.ClientTimeout
) -> aiohttp.ClientSession:
    """A new session, which the caller closes. To be called with the event loop running.

    It keeps no cookies, does not decompress bodies (digests are those of the bytes as sent) and does not re-quote URLs.
    It uses no proxy unless a request names one (`Proxies.options`).
    aiohttp follows redirects by default: callers turn that off in each request.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(resolver=resolver, ssl=tls, limit=0, keepalive_timeout=20),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        requote_redirect_url=False,
        trust_env=False,
        timeout=timeout,
        max_line_size=_LONGEST_FIELD,
        max_field_size=_LONGEST_FIELD,
    )


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


async def read_limited(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """At most `limit` bytes of a body. If more may follow, the connection is closed."""
    content = bytearray()
    async for piece in response.content.iter_any():
        content += piece
        if len(content) >= limit:
            response.close()
            break
    return bytes(content[:limit])


async def _pieces(response: aiohttp.ClientResponse) -> AsyncGenerator[bytes, None]:
    """The pieces of a body as they arrive. An encoded body is read whole, at most `LARGEST` bytes, and decoded."""
    coding = response.headers.get("Content-Encoding")
    if (coding or "identity").strip().lower() == "identity":
        async for piece in response.content.iter_any():
            yield piece
    else:
        yield decode(await read_limited(response, LARGEST), coding, 4 * LARGEST)


@asynccontextmanager
async def translated(upstream: str, described: str) -> AsyncIterator[None]:
    """Translate aiohttp's exceptions into `UpstreamError`s, without URLs, which may contain a signature.

    `described` names the other side in messages.
    """
    try:
        yield
    except UpstreamError:
        raise
    except AddressRefused as error:
        raise UpstreamOffLimits(str(error), upstream=upstream) from error
    except aiohttp.ConnectionTimeoutError as error:
        raise DialTimedOut(f"{described} did not accept a connection in time", upstream=upstream) from error
    except TimeoutError as error:
        raise UpstreamTimeout(f"{described} did not answer in time", upstream=upstream) from error
    except aiohttp.ClientConnectorCertificateError as error:
        # in OpenSSL's words: «certificate has expired», «self-signed certificate», «Hostname mismatch, …»
        why = getattr(error.certificate_error, "verify_message", "") or "for no reason given"
        raise DialFailed(f"the certificate of {described} is not trusted: {why}", upstream=upstream) from error
    except aiohttp.ClientConnectorError as error:
        if isinstance(error.os_error, AddressRefused):
            raise UpstreamOffLimits(str(error.os_error), upstream=upstream) from error
        if isinstance(error.os_error, ssl.SSLError):
            raise DialFailed(f"no connection to {described}: {no_tls(error.os_error)}", upstream=upstream) from error
        # of errors of the kernel, asyncio's own words contain the address
        known = error.os_error.errno or 0
        why = os.strerror(known) if known > 0 else error.os_error.strerror or type(error.os_error).__name__
        raise DialFailed(f"no connection to {described}: {why}", upstream=upstream) from error
    except aiohttp.ClientHttpProxyError as error:
        raise DialFailed(f"the proxy answers {error.status}", upstream=upstream) from error
    except (aiohttp.ClientResponseError, aiohttp.InvalidURL) as error:
        raise UpstreamInvalid(f"{described} sent an answer that is not HTTP", upstream=upstream) from error
    except (aiohttp.ClientError, OSError) as error:
        raise UpstreamUnavailable(f"the connection to {described} broke", upstream=upstream) from error
