"""Credentials that are issued for a limited time, by a helper program or by a cloud.

    none ── credentials() ──> one obtain(), all wait ──> used ── nearly expired: renewed while the old ones are used
     ^                             │                      └── expired, or refused by upstream: reject() ──┐
     │                             └── failed: the error for all callers, and for those that call soon    │
     └────────────────────────────────────────────────────────────────────────────────────────────────────┘

After each failure in a row the issuer is left alone for longer. Credentials younger than `_YOUNG` are not dropped:
registries also answer 401 for a repository that does not exist, and the issuer would give the same ones again.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from mirror import telemetry
from mirror.aio.closing import close_all
from mirror.aio.singleflight import SingleFlight, cancel_and_wait
from mirror.errors import UpstreamDenied, UpstreamError, UpstreamUnavailable
from mirror.policy.upstream.token_lifetime import pause_after
from mirror.upstream.credentials.source import Credentials, CredentialsUnavailable, LoginState

#: Age in seconds below which refused credentials are not dropped.
_YOUNG: Final = 30.0


@dataclass(frozen=True, slots=True)
class Issued:
    """Credentials from an issuer (None: be anonymous): to be renewed after `usable` seconds, invalid after `lasts`."""

    credentials: Credentials | None
    usable: float
    lasts: float


@dataclass(frozen=True, slots=True)
class _Current:
    credentials: Credentials | None
    since: float
    renew_at: float
    over_at: float


class Renewed:
    """A `CredentialSource` over an issuer. `issuer` is its name in messages; `obtain` asks it for credentials.

    `obtain` raises `UpstreamUnavailable` or `UpstreamDenied`, with a message that says what to do and contains no
    secret. `clock` counts seconds, `now` gives epoch seconds.
    """

    def __init__(
        self,
        upstream: str,
        issuer: str,
        obtain: Callable[[], Awaitable[Issued]],
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.issuing = LoginState(issuer, now)
        self._upstream = upstream
        self._issuer = issuer
        self._obtain = obtain
        self._clock = clock
        self._once = SingleFlight()
        self._current: _Current | None = None
        self._failures = 0
        self._failure: UpstreamError | None = None
        self._paused_until = -math.inf
        self._renewing: set[asyncio.Task[_Current]] = set()

    async def credentials(self) -> Credentials | None:
        """The current credentials. A caller waits for the issuer only if they are missing or have expired.

        Raises `UpstreamDenied`, `UpstreamUnavailable` if there are no valid credentials and the issuer gives none.
        """
        now, current = self._clock(), self._current
        if current and now < current.over_at:
            if now >= max(current.renew_at, self._paused_until) and not self._renewing:
                self._renew_meanwhile()
            return current.credentials
        if self._failure and now < self._paused_until:
            # many callers raise the same object: it must not collect all their tracebacks
            raise self._failure.with_traceback(None)
        return (await self._once.run("renew", self._renew)).credentials

    def _renew_meanwhile(self) -> None:
        renewing = asyncio.ensure_future(self._once.run("renew", self._renew))
        self._renewing.add(renewing)
        renewing.add_done_callback(self._renewed)

    def _renewed(self, renewing: asyncio.Task[_Current]) -> None:
        self._renewing.discard(renewing)
        if not renewing.cancelled():
            # marks the error as retrieved: it was logged, and the next call that needs credentials asks again
            renewing.exception()

    async def reject(self, credentials: Credentials) -> None:
        """Drop these credentials, which upstream refused, unless they were replaced or are younger than `_YOUNG`."""
        current = self._current
        if current and current.credentials == credentials and self._clock() - current.since >= _YOUNG:
            self._current = None

    async def aclose(self) -> None:
        """End a renewal that is under way. Repeatable."""
        await close_all(lambda: cancel_and_wait(*self._renewing), self._once.aclose)

    async def _renew(self) -> _Current:
        try:
            issued = await self._obtain()
        except (UpstreamUnavailable, UpstreamDenied) as error:
            self._note(error)
            raise
        except Exception as error:
            # from a third-party library: the text of its exception may contain a secret
            failure = CredentialsUnavailable(
                f"{self._issuer} failed unexpectedly ({type(error).__name__})", upstream=self._upstream
            )
            self._note(failure)
            raise failure from error
        now = self._clock()
        self._failures, self._failure = 0, None
        self.issuing.worked()
        self._current = _Current(issued.credentials, now, now + issued.usable, now + issued.lasts)
        telemetry.log.debug("credentials issued", upstream=self._upstream, issuer=self._issuer, usable=issued.usable)
        return self._current

    def _note(self, error: UpstreamError) -> None:
        self._failures += 1
        self.issuing.failed(str(error))
        pause = pause_after(self._failures)
        self._failure, self._paused_until = error, self._clock() + pause
        telemetry.log.warning(
            "credentials unavailable",
            upstream=self._upstream,
            issuer=self._issuer,
            reason=str(error),
            failures=self._failures,
            retry_in=pause,
        )

    def __repr__(self) -> str:
        state = "none" if self._current is None else f"{self._current.over_at - self._clock():.0f} s left"
        return f"<Renewed {self._issuer} for {self._upstream}, {state}, {self._failures} failures>"
