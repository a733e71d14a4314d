"""The HTTP client for small answers on the event loop: manifests, tags, referrers and tokens.

It is aiohttp, with every feature off that changes bytes or carries state from one request to another.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import aiohttp

from mirror.errors import UpstreamError, UpstreamInvalid, UpstreamOffLimits, UpstreamTimeout, UpstreamUnavailable
from mirror.policy.upstream.url_bounds import UrlBounds
from mirror.upstream.http.dialing import AddressRefused
from mirror.upstream.http.download import DialFailed, DialTimedOut
from mirror.upstream.http.proxies import DIRECT, Proxies
from mirror.upstream.http.resolver import BoundedResolver

#: Called for each request to upstream with its purpose, its status (None: no answer) and the seconds until then.
Observe = Callable[[str, int | None, float], None]


class AnswerTooLarge(UpstreamInvalid):
    """An answer that is larger than its limit."""


#: Signed URLs in `Location` are longer than the 8 KiB that aiohttp allows by default.
_LONGEST_FIELD = 32 * 1024


def open_session(
    bounds: UrlBounds,
    tls: ssl.SSLContext | None,
    *,
    connect_timeout: float,
    read_timeout: float,
    proxies: Proxies = DIRECT,
) -> aiohttp.ClientSession:
    """A new session for one upstream, which the caller closes. To be called with the event loop running.

    It keeps no cookies, does not decompress bodies (digests are those of the bytes as sent) and does not re-quote URLs.
    It uses no proxy unless a request names one (`Proxies.options`); `proxies` gives the address rules for those.
    aiohttp follows redirects by default: callers turn that off in each request.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            resolver=BoundedResolver(bounds, timeout=connect_timeout, proxy_at=proxies.at),
            ssl=tls or True,
            limit=0,
            keepalive_timeout=20,
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        requote_redirect_url=False,
        trust_env=False,
        timeout=aiohttp.ClientTimeout(total=None, connect=None, sock_connect=connect_timeout, sock_read=read_timeout),
        max_line_size=_LONGEST_FIELD,
        max_field_size=_LONGEST_FIELD,
    )


async def read_limited(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """At most `limit` bytes of a body. If more may follow, the connection is closed."""
    kept = bytearray()
    async for piece in response.content.iter_any():
        kept += piece
        if len(kept) >= limit:
            response.close()
            break
    return bytes(kept[:limit])


@asynccontextmanager
async def translated(upstream: str, whom: str) -> AsyncIterator[None]:
    """Translate aiohttp's exceptions into `UpstreamError`s, without URLs, which may contain a signature.

    `whom` names the other side in messages.
    """
    try:
        yield
    except UpstreamError:
        raise
    except AddressRefused as error:
        raise UpstreamOffLimits(str(error), upstream=upstream) from error
    except aiohttp.ConnectionTimeoutError as error:
        raise DialTimedOut(f"{whom} did not answer the dial", upstream=upstream) from error
    except TimeoutError as error:
        raise UpstreamTimeout(f"{whom} did not answer in time", upstream=upstream) from error
    except aiohttp.ClientConnectorCertificateError as error:
        # in OpenSSL's words: «certificate has expired», «self-signed certificate», «Hostname mismatch, …»
        why = getattr(error.certificate_error, "verify_message", "") or "for no reason given"
        raise DialFailed(f"the certificate of {whom} is not trusted: {why}", upstream=upstream) from error
    except aiohttp.ClientConnectorError as error:
        if isinstance(error.os_error, AddressRefused):
            raise UpstreamOffLimits(str(error.os_error), upstream=upstream) from error
        why = error.os_error.strerror or type(error.os_error).__name__
        raise DialFailed(f"no connection to {whom}: {why}", upstream=upstream) from error
    except aiohttp.ClientHttpProxyError as error:
        raise DialFailed(f"the proxy answers {error.status}", upstream=upstream) from error
    except (aiohttp.ClientResponseError, aiohttp.InvalidURL) as error:
        raise UpstreamInvalid(f"{whom} does not answer in HTTP", upstream=upstream) from error
    except (aiohttp.ClientError, OSError) as error:
        raise UpstreamUnavailable(f"the connection to {whom} broke", upstream=upstream) from error
