"""One endpoint of an upstream, and what all connections to it have in common: TLS, proxies, time limits."""

from __future__ import annotations

import ssl
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property

from mirror.errors import UpstreamInvalid
from mirror.policy.upstream.url_bounds import Url, UrlBounds
from mirror.upstream.http.proxies import DIRECT, Proxies


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Time limits, in seconds: `connect` for TCP, and again for TLS; `answer` for a whole small answer, and for the
    headers of a blob; `read` for each wait between two bytes of a blob.

    A blob is given up if it brings fewer than `lowest_rate` bytes a second, averaged over `rate_window` seconds of
    waiting. Its total time is not limited.
    """

    connect: float = 5.0
    answer: float = 25.0
    read: float = 30.0
    lowest_rate: float = 1024.0
    rate_window: float = 60.0


@dataclass(frozen=True)
class Tls:
    """TLS with one upstream and the hosts to which it redirects.

    `verify` is the context to use, or says whether to check certificates at all. `identity` is a context with our
    client certificate, which is shown to the upstream itself and to no host to which it redirects. `name` is the name
    in the certificate of the other side; None: that of its host.
    """

    verify: bool | ssl.SSLContext = True
    identity: ssl.SSLContext | None = None
    name: str | None = None

    @property
    def given(self) -> ssl.SSLContext | None:
        """The context in `verify`; None if it only says whether to check certificates."""
        return self.verify if isinstance(self.verify, ssl.SSLContext) else None

    @cached_property
    def context(self) -> ssl.SSLContext:
        """The context without our client certificate. It is created when it is first needed: that takes a while."""
        if self.given is not None:
            return self.given
        context = ssl.create_default_context() if self.verify else unverified()
        context.set_alpn_protocols(["http/1.1"])
        return context


@dataclass(frozen=True)
class Endpoint:
    """One address of the upstream `name`, and how it is reached. `url` may have a path before `/v2/`.

    `token_hosts` are hosts that may issue tokens, besides those of the endpoint's own site. `internal` permits the
    endpoint, and the hosts it points to, to be on a private network; if it is None, the URL decides. `proxies` chooses
    the proxy for each URL.
    """

    name: str
    url: str
    token_hosts: Collection[str] = ()
    internal: bool | None = None
    tls: Tls = field(default_factory=Tls)
    proxies: Proxies = DIRECT
    timeouts: Timeouts = field(default_factory=Timeouts)
    user_agent: str = "registry-mirror"

    @cached_property
    def bounds(self) -> UrlBounds:
        """Where this endpoint may direct the mirror. Raises `UrlRefused` for an invalid URL."""
        return UrlBounds.of(self.url, self.token_hosts, internal=self.internal)

    @property
    def described(self) -> str:
        """For messages: the upstream's name, with the address if the name is not the address."""
        address = self.bounds.base.authority
        return self.name if address == self.name else f"{self.name} ({address})"

    def is_at(self, url: Url) -> bool:
        """True if the URL is at this endpoint, and not at a host to which it redirects."""
        return url.origin == self.bounds.base.origin

    def identity_for(self, url: Url) -> ssl.SSLContext | None:
        """The TLS context to use for this URL in place of `tls.context`; None: there is no other."""
        return self.tls.identity if self.is_at(url) else None

    def invalid(self, message: str, status: int | None = None) -> UpstreamInvalid:
        """The error for an answer that cannot be used."""
        return UpstreamInvalid(f"{self.name}: {message}", upstream=self.name, status=status)


def unverified() -> ssl.SSLContext:
    """A TLS context that checks no certificate, for a registry whose configuration says so."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
