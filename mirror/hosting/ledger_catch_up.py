"""Lets the ledger have what other replicas have changed, before a push is refused because of a quota.

    a quota refuses ──> was its scope brought up to date just now? ── yes ──> refused
                                    │ no
                        another thread does it? ──> waits for that ──> decided again
                                    │ no
                        repositories of the scope that others have changed since ──> decided again

A follower does the same every few seconds, in one process of the replica; what it has not seen yet is looked for here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Final

from mirror.errors import IndexUnavailable, StoreError
from mirror.oci.reference import Repo
from mirror.policy.hosted.quotas import ScopePatterns
from mirror.telemetry import log

#: Seconds for which a scope counts as up to date, and that a push waits at most until another repository is looked at.
_PAUSE: Final = 5.0
_PATIENCE: Final = 10.0


class LedgerCatchUp:
    """What one process does. Blocks; may be called from any thread."""

    def __init__(
        self,
        versions: Callable[[], Mapping[Repo, Hashable]],
        correct: Callable[[Repo], object],
        scopes: ScopePatterns,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`versions` returns the repositories that any replica has changed, each with what differs after a change.
        `correct` lets the ledger have what is there. Both raise `StoreError`, `IndexUnavailable`. `clock` counts
        seconds.
        """
        self._versions = versions
        self._correct = correct
        self._scopes = scopes
        self._clock = clock
        self._turn = threading.Lock()
        #: Threads that wait for their turn, or have it.
        self.asking: set[int] = set()
        #: When each scope was last begun, how often it was brought up to date, and the versions that the ledger has.
        self._begun: dict[str, float] = {}
        self._times: dict[str, int] = {}
        self._settled: dict[Repo, Hashable] = {}

    def __repr__(self) -> str:
        return f"<LedgerCatchUp {len(self._settled)} repositories>"

    def __call__(self, scope: str) -> bool:
        """Brings a scope up to date. False if that was done just now, or fails."""
        before = self._times.get(scope, 0)
        self.asking.add(threading.get_ident())
        try:
            if not self._turn.acquire(timeout=_PATIENCE):
                return False
            try:
                self._bring(scope)
            finally:
                self._turn.release()
        except (StoreError, IndexUnavailable) as error:
            log.warning("quotas not brought up to date", scope=scope, reason=str(error))
            return False
        finally:
            self.asking.discard(threading.get_ident())
        # also if another thread has done it while this one waited: the caller has not seen that yet
        return self._times.get(scope, 0) != before

    def _bring(self, scope: str) -> None:
        now = self._clock()
        if now - self._begun.get(scope, float("-inf")) >= _PAUSE:
            self._begun[scope] = now
            self._settle(scope, now + _PATIENCE)
            self._times[scope] = self._times.get(scope, 0) + 1

    def _settle(self, scope: str, ends: float) -> None:
        for repo, version in self._versions().items():
            if scope not in self._scopes.of(repo) or self._settled.get(repo) == version:
                continue
            if self._clock() > ends:
                return
            self._correct(repo)
            self._settled[repo] = version
