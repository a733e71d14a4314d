"""The `Authorization` header to send, according to the challenge that a registry sent.

    nothing known ── 401 ──> learn(challenges) ──> authorization() ── GET realm ──> token, remembered until shortly
         ^                        ^                                                 before it expires
         │                        └── 401 although a token was sent: reject(), which drops that one token
         └── a challenge is remembered for its repository, and for the upstream as a first guess for other
             repositories: so the next request is not answered with 401

Source: the distribution project's token specification; RFC 6749, 6 for identity tokens; RFC 7617 for Basic. Tokens
stay in the memory of this process, even if the memo shares other values. Nothing here logs, and no message contains a
secret.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlencode

import aiohttp
from yarl import URL

from mirror import telemetry
from mirror.aio.memo import MISSING, Memo
from mirror.errors import (
    CredentialsRefused,
    UpstreamDenied,
    UpstreamOffLimits,
    UpstreamThrottled,
    UpstreamUnavailable,
)
from mirror.oci.challenge import Challenge, Scope
from mirror.oci.strict_json import read_json
from mirror.policy.upstream.retrying import is_throttling, parse_retry_after, throttle_seconds
from mirror.policy.upstream.token_lifetime import usable_seconds
from mirror.policy.upstream.url_bounds import Url, UrlRefused, parse_url
from mirror.upstream.credentials.source import Credentials, CredentialSource, LoginState
from mirror.upstream.http.client import Observe, read_limited, translated
from mirror.upstream.http.dialing import AddressRefused, check_literal
from mirror.upstream.http.download import REDIRECTS
from mirror.upstream.http.transport import Endpoint
from mirror.upstream.parameters import Clocks

_LARGEST_ANSWER: Final = 64 * 1024
_CHALLENGE_KNOWN_FOR: Final = 3600.0
_CLIENT: Final = "registry-mirror"
_MOST_HOPS: Final = 3
_TOKEN: Final = re.compile(r"[!-~]{1,32768}")
#: Seconds. Some token services answer 403 for a repository that does not exist, too: a 403 within this time after a
#: success does not mean that the credentials are refused.
_LET_IN_FOR: Final = 900.0


class TokenSource:
    """Gives the `Authorization` header for one endpoint; tokens of different endpoints never mix.

    `session` gives the HTTP client, which must not keep cookies or decompress bodies. Every method may be called by
    many tasks at once; those that want the same token share one exchange.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        session: Callable[[], aiohttp.ClientSession],
        credentials: CredentialSource,
        memo: Memo,
        *,
        clocks: Clocks | None = None,
        observe: Observe | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._upstream = endpoint.name
        self._bounds = endpoint.bounds
        self._session = session
        self._credentials = credentials
        self._memo = memo
        self._clocks = clocks = clocks or Clocks()
        self._observe = observe or (lambda event, status, seconds: None)
        self._last: dict[str, str] | None = None
        self._login = LoginState("", lambda: clocks.now())
        self._basic: str | None = None

    @property
    def login(self) -> LoginState:
        """Whether logging in with our own credentials works. The credentials of callers do not count."""
        self._login.provider = self._credentials.issuing.provider
        return self._login

    async def authorization(self, scope: Scope) -> str | None:
        """The header to send for this scope; None if there was no challenge yet, or for Basic without credentials.

        Raises `UpstreamDenied` if the credentials are refused, `UpstreamInvalid` for a realm that is not allowed or an
        answer without a token, `UpstreamOffLimits`, `UpstreamThrottled`, `UpstreamUnavailable`, `UpstreamTimeout`.
        """
        challenge = await self._challenge(scope)
        if challenge is None:
            return None
        credentials = await self._credentials.credentials()
        if challenge["scheme"] == "basic":
            if not credentials or not credentials.username:
                return None
            if credentials.ours:
                self._basic = credentials.basic
            return credentials.basic
        try:
            return await self._bearer(challenge, scope, credentials)
        except UpstreamDenied:
            renewed = await self._renewed(credentials)
            if renewed is None:
                raise
        return await self._bearer(challenge, scope, renewed)

    async def _bearer(self, challenge: Mapping[str, str], scope: Scope, credentials: Credentials | None) -> str:
        token = await self._memo.share(
            self._token_key(challenge, scope, credentials),
            lambda: self._exchange(challenge, scope, credentials),
            lambda made: float(made["usable"]),
            private=True,
        )
        return f"Bearer {token['token']}"

    async def _renewed(self, refused: Credentials | None) -> Credentials | None:
        """Reject these credentials; return others if the source has any."""
        if refused is None:
            return None
        await self._credentials.reject(refused)
        renewed = await self._credentials.credentials()
        return None if renewed == refused else renewed

    async def learn(self, challenges: Sequence[Challenge], scope: Scope) -> bool:
        """Remember the challenge to answer, Bearer before Basic. False if none of them can be answered.

        Raises `UpstreamInvalid`, `UpstreamOffLimits` for a realm that is not allowed.
        """
        usable = {
            challenge.scheme: challenge
            for challenge in reversed(challenges)
            if challenge.scheme == "basic" or challenge.parameters.get("realm")
        }
        challenge = usable.get("bearer") or usable.get("basic")
        if challenge is None:
            return False
        learnt = {"scheme": challenge.scheme}
        if challenge.scheme == "bearer":
            self._check(challenge.parameters["realm"])
            learnt["realm"] = challenge.parameters["realm"]
            learnt["service"] = challenge.parameters.get("service", "")
            learnt["scope"] = challenge.parameters.get("scope", "")
        await self._memo.put(self._memo_key(scope), learnt, _CHALLENGE_KNOWN_FOR, private=True)
        # other repositories have the same realm and service, but each has its own scope
        self._last = {**learnt, "scope": " ".join(e for e in learnt.get("scope", "").split() if ":" not in e)}
        return True

    async def forget_challenge(self, scope: Scope) -> str | None:
        """Forget the challenge for this scope, known or guessed; returns its `challenge_key`."""
        key = await self.challenge_key(scope)
        await self._memo.forget(self._memo_key(scope), private=True)
        self._last = None
        return key

    async def challenge_key(self, scope: Scope) -> str | None:
        """A key for the token service and the token that the challenge for this scope leads to.

        None for Basic, and if no challenge is known or guessed.
        """
        challenge = await self._challenge(scope)
        return None if challenge is None or challenge["scheme"] == "basic" else self._token_key(challenge, scope, None)

    async def _challenge(self, scope: Scope) -> Mapping[str, str] | None:
        remembered = await self._memo.get(self._memo_key(scope), private=True)
        challenge: Mapping[str, str] | None = self._last if remembered is MISSING else remembered
        return challenge

    def accepted(self, authorization: str | None) -> None:
        """Note that upstream accepted this header. It counts as a login only if it was our own Basic credentials."""
        if authorization is not None and authorization == self._basic:
            self._login.worked()

    def refused(self, authorization: str | None) -> bool:
        """Note that upstream refused this header, and that nothing else can be tried.

        True if the header was our own Basic credentials.
        """
        if authorization is None or authorization != self._basic:
            return False
        self._login.failed("the registry refuses the credentials (401)")
        return True

    async def reject(self, scope: Scope, authorization: str) -> None:
        """Drop the token in this header, which upstream refused, unless a newer one has replaced it.

        If the header was Basic, the credentials themselves are rejected.
        """
        challenge = await self._challenge(scope)
        if challenge is None:
            return
        credentials = await self._credentials.credentials()
        if challenge["scheme"] == "basic":
            if credentials and credentials.basic == authorization:
                await self._credentials.reject(credentials)
            return
        key = self._token_key(challenge, scope, credentials)
        token = await self._memo.get(key, private=True)
        if token is not MISSING and f"Bearer {token['token']}" == authorization:
            await self._memo.forget(key, private=True)

    async def _exchange(
        self, challenge: Mapping[str, str], scope: Scope, credentials: Credentials | None
    ) -> dict[str, Any]:
        wanted = _wanted(challenge, scope)
        url = self._check(challenge["realm"])
        proxies, parsed = self._endpoint.proxies, parse_url(url)
        headers = {"Accept": "application/json", "Accept-Encoding": "identity", **proxies.headers(parsed)}
        more = {"allow_redirects": False, "headers": headers, **proxies.options(parsed)}
        began, status = self._clocks.monotonic(), None
        form: dict[str, str] | None = None
        async with translated(self._upstream, "the token service"):
            if credentials and credentials.identity_token:
                form = {
                    "grant_type": "refresh_token",
                    "service": challenge["service"],
                    "client_id": _CLIENT,
                    "scope": str(wanted),
                    "refresh_token": credentials.identity_token,
                }
            else:
                if credentials and credentials.username:
                    headers["Authorization"] = credentials.basic
                url = _with_query(url, challenge["service"], wanted)
            try:
                with telemetry.client_span("upstream token", mirror__upstream=self._upstream):
                    async with asyncio.timeout(self._endpoint.timeouts.answer):
                        status, retry_after, content = await self._ask(url, form, more)
            finally:
                self._observe("token", status, self._clocks.monotonic() - began)
        if status in (400, 401, 403) and self._refuses(status, credentials):
            raise CredentialsRefused("the token service refuses our credentials", upstream=self._upstream, status=401)
        token = self._read(status, retry_after, content)
        if credentials and credentials.ours:
            self._login.worked()
        return token

    async def _ask(
        self, url: str, form: Mapping[str, str] | None, more: Mapping[str, Any]
    ) -> tuple[int, str | None, bytes]:
        """Status, `Retry-After` and body of the token service's answer to POST of the form, or to GET without a form.

        A GET follows redirects only within the same origin, such as one that adds a slash to the path: another host
        would be sent the credentials.
        """
        for _ in range(_MOST_HOPS):
            method = "POST" if form else "GET"
            async with self._session().request(method, URL(url, encoded=True), data=form, **more) as response:
                content = await read_limited(response, _LARGEST_ANSWER + 1)
            following = self._next_hop(parse_url(url), response)
            if form or following is None:
                break
            url = following
        return response.status, response.headers.get("Retry-After"), content

    def _next_hop(self, current: Url, response: aiohttp.ClientResponse) -> str | None:
        if response.status not in REDIRECTS:
            return None
        try:
            entered = self._bounds.next_hop(current, response.headers.get("Location"), 0)
        except UrlRefused:
            return None
        return str(entered) if entered.origin == current.origin else None

    def _refuses(self, status: int, credentials: Credentials | None) -> bool:
        """True if the token service refuses our own credentials, which is also recorded in `login`."""
        if credentials is None or not credentials.ours:
            return False
        if status == 403 and self._clocks.now() - self._login.worked_at < _LET_IN_FOR:
            return False
        self._login.failed(f"the token service refuses the credentials ({status})")
        return True

    def _read(self, status: int, retry_after: str | None, content: bytes) -> dict[str, Any]:
        """The token in an answer, and for how many seconds to use it. Raises by status, without quoting the answer."""
        if is_throttling(status, retry_after):
            wait = throttle_seconds(parse_retry_after(retry_after, self._clocks.now()), 1)
            raise UpstreamThrottled(
                "the token service asks to slow down", upstream=self._upstream, status=status, retry_after=wait
            )
        if status in (400, 401, 403):
            raise UpstreamDenied("the token service refuses access", upstream=self._upstream, status=401)
        if status >= 500:
            raise UpstreamUnavailable(f"the token service answers {status}", upstream=self._upstream, status=status)
        if not 200 <= status < 300:
            raise self._endpoint.invalid(f"the token service answers {status}", status)
        if len(content) > _LARGEST_ANSWER:
            raise self._endpoint.invalid(f"the token service's answer is over {_LARGEST_ANSWER} bytes", status)
        try:
            body = read_json(content)
        except ValueError as error:
            raise self._endpoint.invalid("the token service's answer is not JSON", status) from error
        token = body.get("token") or body.get("access_token") if isinstance(body, dict) else None
        if not isinstance(token, str) or not _TOKEN.fullmatch(token):
            raise self._endpoint.invalid("the token service's answer contains no token", status)
        return {"token": token, "usable": usable_seconds(body.get("expires_in"))}

    def _check(self, realm: str) -> str:
        try:
            url = self._bounds.check_realm(realm)
            check_literal(self._bounds, url.host)
        except UrlRefused as error:
            raise self._endpoint.invalid(str(error), 401) from error
        except AddressRefused as error:
            raise UpstreamOffLimits(str(error), upstream=self._upstream, status=401) from error
        return str(url)

    def _memo_key(self, scope: Scope) -> str:
        return f"challenge {self._upstream} {self._bounds.base} {scope}"

    def _token_key(self, challenge: Mapping[str, str], scope: Scope, credentials: Credentials | None) -> str:
        parts = (
            str(self._bounds.base),
            challenge["realm"],
            challenge["service"],
            str(_wanted(challenge, scope)),
            credentials.fingerprint if credentials else "",
        )
        return "token " + hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def __repr__(self) -> str:
        return f"<TokenSource of {self._endpoint.described}>"


def _with_query(url: str, service: str, wanted: Scope) -> str:
    """The URL with the query of a token request. An empty `service` is left out: some treat it as another service."""
    pairs = [("service", service)] if service else []
    query = urlencode([*pairs, *(("scope", entry) for entry in wanted.entries)])
    return f"{url}{'&' if '?' in url else '?'}{query}" if query else url


def _wanted(challenge: Mapping[str, str], scope: Scope) -> Scope:
    """The scope of the challenge together with the scope that we need."""
    return Scope.parse(challenge.get("scope", "")).union(scope)
