"""Sends the calls to one registry: admission, authorization, retries and back-off.

admitted? ── throttled (429/503 said wait) or down (dials failed) ──> error at once, upstream is not contacted
    │
send ──┬── 401: challenge learnt, one new token, sent again once ── 401 again ──> UpstreamDenied
       ├── 5xx, broken connection: at most `retries` further tries, each after a jittered wait
       ├── 429, 503 + Retry-After ──> UpstreamThrottled, also for every later call until the wait is over
       └── an answer that the call can use ──> returned to the caller
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

from mirror import telemetry
from mirror.errors import (
    AskAgain,
    CredentialsRefused,
    UpstreamCircuitOpen,
    UpstreamDenied,
    UpstreamError,
    UpstreamInvalid,
    UpstreamNotFound,
    UpstreamThrottled,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from mirror.oci.challenge import Scope, parse_challenges
from mirror.policy.upstream.budget import is_spent, parse_budget
from mirror.policy.upstream.quoting import quoted
from mirror.policy.upstream.retrying import (
    CLOSED,
    back_off,
    is_throttling,
    is_worth_retrying,
    parse_retry_after,
    throttle_seconds,
)
from mirror.upstream.credentials.source import CredentialsUnavailable
from mirror.upstream.elsewhere import Elsewhere
from mirror.upstream.http.download import Answer, DialFailed, DialTimedOut
from mirror.upstream.http.throttled_hosts import HostThrottled, ThrottledHosts
from mirror.upstream.http.transport import Endpoint
from mirror.upstream.login import Login, Passes
from mirror.upstream.parameters import Clocks, Hooks
from mirror.upstream.rate_limits import Accounts
from mirror.upstream.tokens import TokenSource

#: Seconds until a call that is refused during a probe may be repeated, to see the result of the probe.
_WHILE_PROBING: Final = 0.25
#: Statuses by which a redirect target refuses its URL: its signature may have expired, and the registry gives a new
#: one.
_REFUSED_ADDRESS: Final = frozenset({400, 401, 403, 410})
#: The most characters of a path that a message shows.
_LONGEST_PATH: Final = 200


@dataclass(frozen=True, slots=True)
class Call:
    """One call, for metrics named `event`. `send` sends one request of it; `retries` limits the further tries.

    `is_usable` tells whether the call can use an answer; any other answer is raised as an error. An error for which
    `has_fallback` is True is not reported as a failure, because the caller goes on with another call. `tries` are those
    before, by a caller that pauses itself: it gets an `AskAgain` where a pause is due. None: pauses are made here.
    """

    event: str
    scope: Scope
    send: Callable[[Passes], Awaitable[Answer]]
    is_usable: Callable[[Answer], bool]
    retries: int
    has_fallback: Callable[[UpstreamError], bool] = lambda error: False
    tries: int | None = None


class Calls:
    """The calls to one endpoint, which share its back-off.

    `tokens` authenticates to the registry, `elsewhere` to others to which it redirects. `accounts` and `hosts` are the
    accounts and the hosts that are left alone after a 429.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        tokens: TokenSource,
        elsewhere: Elsewhere,
        accounts: Accounts,
        hosts: ThrottledHosts,
        hooks: Hooks,
        clocks: Clocks,
    ) -> None:
        self._endpoint = endpoint
        self._upstream = endpoint.name
        self._tokens = tokens
        self._elsewhere = elsewhere
        self._accounts = accounts
        self._hosts = hosts
        self._hooks = hooks
        self._clocks = clocks
        #: Whether the registry counts as down.
        self.circuit = CLOSED
        #: Why the last call that got no usable answer failed; empty once one has succeeded.
        self.trouble = ""
        self._probing = False

    async def run(self, call: Call) -> Answer:
        """The answer to a call. Raises the `UpstreamError` of its last try, which `Hooks.on_failure` gets, too."""
        try:
            return await self._try(call)
        except (UpstreamNotFound, AskAgain):
            raise
        except UpstreamError as error:
            if not call.has_fallback(error):
                self._hooks.on_failure(error)
            raise

    async def _try(self, call: Call) -> Answer:
        login = Login(self._tokens, self._elsewhere, call.scope)
        tries = 1 + (call.tries or 0)
        while True:
            with self._admitted():
                try:
                    passes = await login.passes()
                    answer = await self._send(call, passes)
                except UpstreamError as error:
                    self._note_failure(error)
                    if tries > call.retries or not self._is_passing(error):
                        raise
                    await self._pause(call, tries, error)
                    tries += 1
                    continue
            if self.circuit.delay:
                self._notice(telemetry.Notice.UPSTREAM_UP)
            self.circuit = CLOSED
            await self._note_limits(answer)
            if call.is_usable(answer):
                self._note_success(answer, passes)
                return answer
            if answer.status == 401 and await self._learn(login, answer, passes):
                continue
            failure = self._failure(answer, passes.own)
            self._note_trouble(failure)
            failure.elsewhere = self._is_elsewhere(answer)
            if tries > call.retries or not _is_unavailable(failure):
                raise failure
            await self._pause(call, tries, failure)
            tries += 1

    async def prepare(self, scope: Scope) -> None:
        """Obtains the token for calls of this scope, if one is needed and can be had now. Raises nothing: a call that
        needs it finds out.
        """
        with suppress(UpstreamError), self._admitted():
            await Login(self._tokens, self._elsewhere, scope).passes()

    async def once(self, call: Call) -> Answer:
        """The answer to a call on which nothing depends. It is sent only while the registry is well and pulls are left,
        and only once, or again with a new token, or once to another address to which the registry redirects it; its
        failure changes nothing for other calls. Raises `UpstreamError`.
        """
        account, now = self._accounts.current, self._clocks.monotonic()
        if account.throttled_until > now or (account.budget and is_spent(account.budget, self._clocks.now())):
            message = f"{self._endpoint.described} wants fewer requests"
            raise UpstreamThrottled(message, upstream=self._upstream, retry_after=account.throttled_until - now)
        if self.circuit is not CLOSED:
            message = f"{self._endpoint.described} did not answer recently"
            raise UpstreamCircuitOpen(message, upstream=self._upstream, retry_after=0.0)
        login, expired = Login(self._tokens, self._elsewhere, call.scope), False
        while True:
            passes = await login.passes()
            answer = await self._send(call, passes)
            if call.is_usable(answer):
                return answer
            if answer.status == 401 and await self._learn(login, answer, passes):
                continue
            if expired or not self._is_elsewhere(answer) or answer.status not in _REFUSED_ADDRESS:
                break
            expired = True
        message, status = f"{self._sender(answer)} answers {answer.status}", answer.status
        if is_throttling(status, answer.fields.get("Retry-After")):
            raise UpstreamThrottled(message, upstream=self._upstream, status=status, retry_after=0.0)
        raise UpstreamUnavailable(message, upstream=self._upstream, status=status)

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        """Raises `UpstreamThrottled`, `UpstreamCircuitOpen` if no call may be sent now.

        After an upstream was down, the first call that is admitted is a probe, and others are refused meanwhile.
        """
        now = self._clocks.monotonic()
        wait = self._accounts.current.throttled_until - now
        if wait > 0:
            message = f"{self._endpoint.described} wants no requests for another {wait:.0f} s"
            raise UpstreamThrottled(message, upstream=self._upstream, retry_after=wait)
        verdict = self.circuit.verdict(now)
        if verdict.wait or (verdict.probe and self._probing):
            raise UpstreamCircuitOpen(
                f"{self._endpoint.described} did not answer recently",
                upstream=self._upstream,
                retry_after=verdict.wait or _WHILE_PROBING,
            )
        self._probing = self._probing or verdict.probe
        try:
            yield
        finally:
            self._probing = self._probing and not verdict.probe

    async def _send(self, call: Call, passes: Passes) -> Answer:
        began, status = self._clocks.monotonic(), None
        try:
            with telemetry.client_span(f"upstream {call.event}", mirror__upstream=self._upstream) as span:
                answer = await call.send(passes)
                status = answer.status
                span.note(http__response__status_code=status, server__address=answer.url.host)
            return answer
        finally:
            self._hooks.observe(call.event, status, self._clocks.monotonic() - began)

    async def _pause(self, call: Call, tries: int, error: UpstreamError) -> None:
        seconds = back_off(tries, self._clocks.jitter())
        if call.tries is not None:
            raise AskAgain(str(error), upstream=self._upstream, status=error.status, retry_after=seconds) from error
        await self._clocks.sleep(seconds)

    async def _learn(self, login: Login, answer: Answer, passes: Passes) -> bool:
        """Learn from a 401. True if the request should be sent again."""
        challenges = parse_challenges(answer.fields.getall("WWW-Authenticate", ()))
        if self._is_elsewhere(answer):
            return await login.challenged_elsewhere(passes, answer.url, challenges)
        return await login.challenged(passes, challenges)

    # ------------------------------------------------------------------------------------ what each result changes

    def _note_trouble(self, error: UpstreamError) -> None:
        if isinstance(error, UpstreamUnavailable | UpstreamThrottled):
            self.trouble = str(error)

    def _note_failure(self, error: UpstreamError) -> None:
        self._note_trouble(error)
        if isinstance(error, UpstreamThrottled) and not isinstance(error, HostThrottled):
            self._throttle(error.retry_after)
        # if the registry has answered with a redirect, it is not down
        if isinstance(error, DialFailed | DialTimedOut | UpstreamTimeout) and not error.elsewhere:
            was_down = self.circuit.delay > 0
            self.circuit = self.circuit.failed(self._clocks.monotonic())
            if self.circuit.delay and not was_down:
                self._notice(telemetry.Notice.UPSTREAM_DOWN)

    def _notice(self, what: telemetry.Notice) -> None:
        telemetry.notice(what, upstream=self._upstream, address=self._endpoint.bounds.base.authority)

    def _is_passing(self, error: UpstreamError) -> bool:
        """True if the same request may succeed soon, after no answer. A time-out has taken long enough already."""
        is_down = self.circuit.verdict(self._clocks.monotonic()).wait > 0
        return (
            _is_unavailable(error) and not is_down and not isinstance(error, UpstreamTimeout | CredentialsUnavailable)
        )

    async def _note_limits(self, answer: Answer) -> None:
        if self._is_elsewhere(answer):
            if answer.status < 400:
                self._hosts.forgive(answer.url)
            return
        limit, remaining = answer.fields.get("RateLimit-Limit"), answer.fields.get("RateLimit-Remaining")
        budget = parse_budget(limit, remaining, self._clocks.now())
        if budget is not None:
            await self._accounts.note_budget(budget)

    def _note_success(self, answer: Answer, passes: Passes) -> None:
        self._accounts.current.strikes = 0
        self.trouble = ""
        if answer.status < 400 or answer.status == 404:
            self._tokens.accepted(passes.own)

    def _throttle(self, seconds: float) -> None:
        account = self._accounts.current
        account.throttled_until = max(account.throttled_until, self._clocks.monotonic() + seconds)

    # ------------------------------------------------------------------------------------ the error for an answer

    def _failure(self, answer: Answer, authorization: str | None) -> UpstreamError:
        """The error for an answer by its status. A throttled account or host is left alone from now on."""
        status, elsewhere = answer.status, self._is_elsewhere(answer)
        message = f"{self._sender(answer)} answers {status}{quoted(answer.content, authorization)}"
        if is_throttling(status, answer.fields.get("Retry-After")):
            return self._throttled(answer, message)
        if status == 404:
            return self.not_found(answer)
        if status >= 500 or (elsewhere and status in _REFUSED_ADDRESS):
            return UpstreamUnavailable(message, upstream=self._upstream, status=None if status < 500 else status)
        if status == 401 and self._tokens.refused(authorization):
            return CredentialsRefused(message, upstream=self._upstream, status=status)
        if status in (401, 403):
            return UpstreamDenied(message, upstream=self._upstream, status=status)
        return UpstreamInvalid(message, upstream=self._upstream, status=status)

    def _throttled(self, answer: Answer, message: str) -> UpstreamThrottled:
        seconds = parse_retry_after(answer.fields.get("Retry-After"), self._clocks.now())
        if self._is_elsewhere(answer):
            wait = self._hosts.throttle(answer.url, seconds)
            return HostThrottled(message, upstream=self._upstream, status=answer.status, retry_after=wait)
        account = self._accounts.current
        account.strikes += 1
        wait = throttle_seconds(seconds, account.strikes)
        self._throttle(wait)
        return UpstreamThrottled(message, upstream=self._upstream, status=answer.status, retry_after=wait)

    def not_found(self, answer: Answer) -> UpstreamNotFound:
        """The error for an answer with status 404."""
        path = answer.url.target.partition("?")[0][:_LONGEST_PATH]
        return UpstreamNotFound(f"{self._sender(answer)} does not know {path}", upstream=self._upstream, status=404)

    def _sender(self, answer: Answer) -> str:
        """The other side, as messages name it: the registry, or the address of a host to which it redirected.

        The name shows the client that upstream refused the call, not the mirror.
        """
        return answer.url.authority if self._is_elsewhere(answer) else self._endpoint.described

    def _is_elsewhere(self, answer: Answer) -> bool:
        """True if a host to which the registry redirected gave the answer."""
        return not self._endpoint.is_at(answer.url)

    def __repr__(self) -> str:
        return f"<Calls to {self._endpoint.described}, {self.circuit.failures} failures>"


def _is_unavailable(error: UpstreamError) -> bool:
    """True if the registry, or a host to which it redirects, has trouble that may be over soon."""
    return isinstance(error, UpstreamUnavailable) and is_worth_retrying(error.status)
