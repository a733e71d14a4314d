"""What all connections of one upstream have in common: their time limits and TLS."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from functools import cached_property

from mirror.policy.upstream.url_bounds import Url


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
    client certificate, which is shown to the upstream itself and to no host to which it redirects.
    """

    verify: bool | ssl.SSLContext = True
    identity: ssl.SSLContext | None = None

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

    def context_for(self, url: Url, base: Url) -> ssl.SSLContext:
        """The context for a connection to `url`; `base` is the upstream's own URL."""
        return self.identity if self.identity and url.origin == base.origin else self.context


def unverified() -> ssl.SSLContext:
    """A TLS context that checks no certificate, for a registry whose configuration says so."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
