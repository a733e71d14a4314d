"""The authentication of one call to a registry.

    no challenge known ──────────────────────────────────────────────> the request is sent without authorization
    a challenge remembered, or guessed from another repository
        ├── a token for it, or our password ─────────────────────────> the request is sent with it
        └── its token service fails: the challenge is forgotten ─────> the request is sent without
                                                                            │
        a new challenge ── another one: it is tried <── 401 ────────────────┘
                        └─ the same one: the call fails with the failure of its token service

Without the last branch, one 401 whose token service fails would block a registry that requires no login. A call for a
caller is never sent without that caller's credentials once upstream has asked for them: what upstream gives to everyone
does not prove that this caller has access.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mirror.caller import caller_mark
from mirror.errors import UpstreamDenied, UpstreamError
from mirror.oci.challenge import Challenge, Scope
from mirror.policy.upstream.url_bounds import Origin, Url
from mirror.upstream.credentials.source import CredentialsUnavailable
from mirror.upstream.elsewhere import Elsewhere
from mirror.upstream.tokens import TokenSource


@dataclass(frozen=True, slots=True)
class Passes:
    """The `Authorization` headers of one request: `own` for the registry itself, `elsewhere` for the origins to which
    it redirects.
    """

    own: str | None = None
    elsewhere: Mapping[Origin, str] = field(default_factory=dict)


class Login:
    """The authentication of one call, for one scope. Each call has its own `Login`."""

    def __init__(self, tokens: TokenSource, elsewhere: Elsewhere, scope: Scope) -> None:
        self._tokens = tokens
        self._elsewhere = elsewhere
        self._scope = scope
        #: The key and the error of a remembered challenge that failed, until upstream confirms that challenge.
        self._doubted: tuple[str | None, UpstreamError] | None = None
        self._pending: UpstreamError | None = None
        self._challenged = self._challenged_elsewhere = False

    async def passes(self) -> Passes:
        """The headers for the next request of the call. Raises like `TokenSource.authorization`."""
        if self._pending is not None:
            error, self._pending = self._pending, None
            raise error
        return Passes(await self._own(), await self._elsewhere.passes(self._scope))

    async def _own(self) -> str | None:
        try:
            return await self._tokens.authorization(self._scope)
        except CredentialsUnavailable:
            raise
        except UpstreamError as error:
            if self._challenged or (caller_mark() and isinstance(error, UpstreamDenied)):
                raise
            self._doubted = await self._tokens.forget_challenge(self._scope), error
            if caller_mark():
                raise
            return None

    async def challenged(self, sent: Passes, challenges: Sequence[Challenge]) -> bool:
        """Learn from a 401 of the registry. True if the request should be sent again: at most once for each call."""
        if self._challenged:
            return False
        self._challenged = True
        if sent.own:
            await self._tokens.reject(self._scope, sent.own)
        learnt = await self._tokens.learn(challenges, self._scope)
        if learnt and self._doubted and await self._tokens.challenge_key(self._scope) == self._doubted[0]:
            self._pending = self._doubted[1]
        if learnt and (sent.own or "").startswith("Basic "):
            return await self._tokens.authorization(self._scope) not in (None, sent.own)
        return learnt

    async def challenged_elsewhere(self, sent: Passes, url: Url, challenges: Sequence[Challenge]) -> bool:
        """Like `challenged`, for a 401 of `url`, to which the registry has redirected; also at most once."""
        if self._challenged_elsewhere:
            return False
        self._challenged_elsewhere = True
        return await self._elsewhere.learn(url, challenges, self._scope, sent.elsewhere)
