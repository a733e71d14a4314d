"""The quotas of hosted registries, judged by the ledger.

    POST with a length ── check()     refused before a byte is received
    body               ── allow()     refused while it grows; from figures that are at most a second old
    linked             ── link()      refused, or noted in the ledger, in one step

Only `link` decides for all processes: content never goes beyond a limit, but sessions that are open at the same time
may each receive a body that `link` then refuses. What is deleted but kept counts until it is collected.

In a cluster, whoever would refuse a push first lets the ledger have what other replicas have deleted
(`ledger_catch_up.py`), and decides again.

A ledger that fails stops no push: content is then noted later, when the ledger is completed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Final, TypeVar

from mirror.errors import IndexUnavailable, QuotaExceeded
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.hosted.quotas import Overrun, QuotaRules, overrun
from mirror.ports import LinkLedger
from mirror.telemetry import INDEX_FAILURES, log

T = TypeVar("T")

#: Seconds for which `allow` believes the figures that it has read.
_BELIEVED: Final = 1.0


@dataclass(frozen=True, slots=True)
class ScopeUsage:
    """How full a scope is, in bytes. `used` is None if the ledger cannot be read, `limit` if there is none."""

    scope: str
    used: int | None
    limit: int | None


class Quotas:
    """Quotas of all hosted registries. All calls but `usage` block for a millisecond or so, in a cluster for seconds
    before a refusal, and may be made from any thread. `now` returns seconds.
    """

    def __init__(
        self,
        ledger: LinkLedger,
        rules: QuotaRules,
        *,
        catch_up: Callable[[str], bool] | None = None,
        now: Callable[[], float] = monotonic,
    ) -> None:
        """`catch_up` lets the ledger have what other replicas have changed in a scope; False if it has it already. None
        if there are no others.
        """
        self._ledger = ledger
        self._rules = rules
        self._catch_up = catch_up
        self._now = now
        self._believed: dict[str, tuple[float, int]] = {}
        self._failing = False

    def __repr__(self) -> str:
        return f"<Quotas {self._rules.scopes.all()}{' failing' if self._failing else ''}>"

    def check(self, repo: Repo, size: int, digest: Digest | None = None) -> None:
        """Check that `size` more bytes fit, before an upload. Content that `digest` names counts only where it is new.

        Raises `QuotaExceeded`.
        """
        limits = self._rules.limits(repo)
        if limits:
            self._decide(lambda: self._overrun(limits, size, digest))

    def allow(self, repo: Repo, size: int) -> None:
        """Check that an upload of so far `size` bytes may go on. Reads the ledger at most once a second. Raises
        `QuotaExceeded`.
        """
        limits = self._rules.limits(repo)
        self._decide(lambda: overrun(limits, {scope: self._recently_used(scope) for scope in limits}, size))

    def link(self, repo: Repo, digest: Digest, size: int) -> None:
        """Note a blob or a manifest of `size` bytes that the repository has now. Repeatable.

        To be called after its record was written. Raises `QuotaExceeded`: the caller then takes the record back, by its
        version. Content that is noted already is never refused.
        """
        limits = self._rules.limits(repo)
        self._decide(lambda: self._asked(lambda: self._ledger.add(repo, digest, size, limits), None))

    def unlink(self, repo: Repo, digest: Digest) -> None:
        """Note that the repository no longer has a blob or a manifest. To be called after its record was dropped."""
        self._asked(lambda: self._ledger.remove(repo, digest), None)

    async def usage(self) -> list[ScopeUsage]:
        """How full each registry and each pattern with a quota is, sorted by scope."""
        return await asyncio.to_thread(self._usage)

    def _usage(self) -> list[ScopeUsage]:
        return [ScopeUsage(scope, self._used(scope), self._rules.limit(scope)) for scope in self._rules.scopes.all()]

    def _decide(self, find: Callable[[], Overrun | None]) -> None:
        """Raises `QuotaExceeded` if there is an overrun, also once the scope is up to date."""
        too_much, tried = find(), set[str]()
        while too_much and self._catch_up is not None and too_much.scope not in tried:
            tried.add(too_much.scope)
            if not self._catch_up(too_much.scope):
                break
            self._believed.clear()
            too_much = find()
        if too_much:
            raise QuotaExceeded(str(too_much))

    def _overrun(self, limits: Mapping[str, int], size: int, digest: Digest | None) -> Overrun | None:
        counting = {scope: limit for scope, limit in limits.items() if digest is None or self._adds(scope, digest)}
        used = {scope: self._used(scope) or 0 for scope in counting}
        return overrun(counting, used, size)

    def _adds(self, scope: str, digest: Digest) -> bool:
        return self._asked(lambda: self._ledger.adds(scope, digest), True)

    def _used(self, scope: str) -> int | None:
        return self._asked(lambda: self._ledger.usage(scope), None)

    def _recently_used(self, scope: str) -> int:
        read_at, used = self._believed.get(scope, (float("-inf"), 0))
        now = self._now()
        if now - read_at > _BELIEVED:
            used = self._asked(lambda: self._ledger.usage(scope), used)
            self._believed[scope] = now, used
        return used

    def _asked(self, ask: Callable[[], T], otherwise: T) -> T:
        """The answer of the ledger; `otherwise` if it fails."""
        try:
            answer = ask()
        except IndexUnavailable as error:
            INDEX_FAILURES.inc()
            if not self._failing:
                self._failing = True
                log.warning("quotas not checked", reason=str(error))
            return otherwise
        if self._failing:
            self._failing = False
            log.info("quotas checked again")
        return answer
