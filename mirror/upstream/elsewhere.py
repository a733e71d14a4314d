"""Anonymous tokens for other registries to which an upstream redirects.

A registry under a vanity name (`registry.k8s.io` began as one) redirects to the registry that has the content. That
registry may require a token, which every client gets without a login:

    redirect ──> 401 with a Bearer challenge ──> an anonymous token from that registry's token service ──> sent again
                                                 remembered for the scope whose call led there

That registry is sent neither our credentials, nor a caller's, nor a token of our registry. Its token is sent to it
alone. Its token service must be on its own site, at an address that our upstream may lead to.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final

from mirror.aio.caches import LruCache
from mirror.aio.memo import MISSING, Memo
from mirror.errors import UpstreamError
from mirror.oci.challenge import Challenge, Scope
from mirror.policy.upstream.url_bounds import Origin, Url, UrlRefused, parse_url
from mirror.upstream.http.dialing import AddressRefused, check_literal
from mirror.upstream.http.transport import Endpoint
from mirror.upstream.tokens import TokenSource

_KNOWN_FOR: Final = 3600.0
#: The most token sources that are kept; everything in them can be obtained again.
_MOST: Final = 64
_REPOSITORY: Final = re.compile(r"/v2/(.+)/(?:manifests|blobs|tags|referrers)/")


class Elsewhere:
    """The tokens for the redirect targets of one upstream. `make` gives a source of anonymous tokens for a registry."""

    def __init__(self, endpoint: Endpoint, memo: Memo, make: Callable[[Endpoint], TokenSource]) -> None:
        self._endpoint = endpoint
        self._bounds = endpoint.bounds
        self._memo = memo
        self._make = make
        self._sources: LruCache[Origin, TokenSource] = LruCache(_MOST, name="token sources")

    async def passes(self, scope: Scope) -> Mapping[Origin, str]:
        """The `Authorization` for the registry to which calls of this scope were last redirected.

        Empty if that registry required none, or no token can be obtained now.
        """
        remembered = await self._memo.get(self._key(scope), private=True)
        if remembered is MISSING:
            return {}
        site, there = parse_url(remembered["site"]), Scope.parse(remembered["scope"])
        with suppress(UpstreamError):
            authorization = await self._source(site).authorization(there)
            return {} if authorization is None else {site.origin: authorization}
        return {}

    async def learn(
        self, url: Url, challenges: Sequence[Challenge], scope: Scope, passes: Mapping[Origin, str]
    ) -> bool:
        """Learn from a 401 of `url`. True if there is now a token for it other than the one in `passes`, just sent."""
        bearer = [challenge for challenge in challenges if challenge.scheme == "bearer"]
        site = Url(url.scheme, url.host, url.port, "/")
        match = _REPOSITORY.match(url.target.partition("?")[0])
        there = Scope.pull(match[1]) if match else Scope()
        source = self._source(site)
        try:
            for challenge in bearer:
                check_literal(self._bounds, parse_url(challenge.parameters.get("realm", "")).host)
            sent = passes.get(site.origin)
            if sent is not None:
                await source.reject(there, sent)
            if not await source.learn(bearer, there):
                return False
            authorization = await source.authorization(there)
        except (UpstreamError, UrlRefused, AddressRefused):
            # a failing token service of another registry is no reason to leave our own upstream alone
            return False
        if authorization in (None, sent):
            return False
        await self._memo.put(self._key(scope), {"site": str(site), "scope": str(there)}, _KNOWN_FOR, private=True)
        return True

    def _source(self, site: Url) -> TokenSource:
        source = self._sources.get(site.origin)
        if source is None:
            source = self._sources[site.origin] = self._make(
                replace(self._endpoint, url=str(site), token_hosts=(), internal=self._bounds.internal)
            )
        return source

    def _key(self, scope: Scope) -> str:
        return f"elsewhere {self._endpoint.name} {self._bounds.base} {scope}"
