"""Private images in a shared cache: cached content is given to a caller only if upstream would give it to that caller.

The states of a repository and a caller's own credentials:

    unknown ── upstream is asked, with those credentials ──> allowed ── `verified_for` over ──> asked again
                    │                                           └── upstream down ──> allowed `verified_while_down`
                    └── refused ──> refused for some seconds

Upstream is asked for what the caller wants, or, if that would be costly, by a free HEAD for a manifest of the
repository that is cached here. Callers share the cached bytes, but not the right to them. Only a fingerprint of the
credentials is remembered, never the credentials.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

from mirror import telemetry
from mirror.aio.caches import LruCache
from mirror.aio.singleflight import SingleFlight
from mirror.errors import UpstreamDenied, UpstreamThrottled, UpstreamUnavailable
from mirror.oci.authorization import CallerCredentials
from mirror.oci.reference import Reference, Repo
from mirror.oci.request import Kind, RegistryRequest
from mirror.trust.login_limit import LoginLimiter

#: Seconds for which a refusal is remembered.
_REFUSED_FOR: Final = 15.0
_MOST: Final = 50_000


class Verifiable(Protocol):
    """A repository that a caller wants to pull from."""

    repo: Repo


@runtime_checkable
class Provable(Protocol):
    """A repository whose upstream can prove what a caller may do (`ProxiedRepository`, `GuardedProxy`)."""

    async def prove(self, kind: Kind, reference: Reference | None) -> None:
        """Returns if upstream gives the content to the caller. Raises `UpstreamDenied`, `NotFound`, `UpstreamError`."""


@dataclass(frozen=True, slots=True)
class _Verdict:
    allowed: bool
    at: float


class Verifier:
    """Asks upstream whether callers may pull, and remembers the answers.

    An approval is believed for `verified_for` seconds, and for `verified_while_down` seconds while upstream does not
    answer. `now` is monotonic.
    """

    def __init__(
        self,
        *,
        verified_for: float = 300.0,
        verified_while_down: float = 3600.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._verified_for = verified_for
        self._verified_while_down = verified_while_down
        self._now = now
        self._verdicts: LruCache[tuple[Repo, str], _Verdict] = LruCache(_MOST, name="upstream access")
        self._login_limit = LoginLimiter(lambda: self._now())
        self._once = SingleFlight()

    def __repr__(self) -> str:
        return f"<Verifier {len(self._verdicts)} verdicts>"

    async def may_pull(self, repository: Verifiable, own: CallerCredentials | None, wanted: RegistryRequest) -> bool:
        """True if upstream gives the wanted content to the holder of these credentials. Call it inside
        `caller.on_behalf_of`.

        Raises `ManifestUnknown` or `BlobUnknown` if upstream does not have the content, `UpstreamError` if upstream
        cannot tell now and no approval is recent enough, `TooManyLogins` if too many credentials of this user name were
        refused or are being asked about.
        """
        key = repository.repo, own.fingerprint if own else ""
        verdict = self._verdicts.get(key)
        if verdict is not None:
            age = self._now() - verdict.at
            if age < (self._verified_for if verdict.allowed else _REFUSED_FOR):
                return verdict.allowed
        stranger = own if verdict is None or not verdict.allowed else None
        try:
            with self._login_limit.asking(repository.repo.registry, stranger) if stranger else nullcontext():
                work = (*key, wanted.kind, wanted.reference)
                allowed = await self._once.run(work, lambda: self._ask(repository, wanted))
                if own is not None:
                    self._login_limit.answered(repository.repo.registry, own, accepted=allowed)
        except (UpstreamUnavailable, UpstreamThrottled) as error:
            if verdict is not None and verdict.allowed and self._now() - verdict.at < self._verified_while_down:
                telemetry.log.warning("access not verified again", repository=str(repository.repo), reason=str(error))
                return True
            raise
        self._verdicts[key] = _Verdict(allowed, self._now())
        return allowed

    async def _ask(self, repository: Verifiable, wanted: RegistryRequest) -> bool:
        if not isinstance(repository, Provable):
            # a sealed repository: without an upstream no caller's rights can be proven
            return False
        try:
            await repository.prove(wanted.kind, wanted.reference)
        except UpstreamDenied:
            return False
        return True

    async def aclose(self) -> None:
        """Cancels questions under way. Repeatable."""
        await self._once.aclose()
