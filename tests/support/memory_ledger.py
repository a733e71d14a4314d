"""A `LinkLedger` in dicts: the simplest correct implementation, which sums up at each call."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

from mirror.errors import IndexUnavailable
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.hosted.quotas import Overrun, ScopePatterns, overrun


class MemoryLedger:
    """See `mirror.ports.LinkLedger`. Every call raises `IndexUnavailable` while `fails` is true."""

    def __init__(self, scopes: ScopePatterns | None = None) -> None:
        self._scopes = scopes or ScopePatterns()
        self._noted: dict[Repo, dict[Digest, int]] = {}
        self._missed, self._completed = 1, 0
        self._changing = threading.Lock()
        self.fails = False

    def add(self, repo: Repo, digest: Digest, size: int, limits: Mapping[str, int] | None = None) -> Overrun | None:
        self._check()
        with self._changing:
            if digest not in self._noted.get(repo, {}):
                counting = {scope: limit for scope, limit in (limits or {}).items() if self.adds(scope, digest)}
                if too_much := overrun(counting, {scope: self.usage(scope) for scope in counting}, size):
                    return too_much
                self._noted.setdefault(repo, {})[digest] = size
        return None

    def remove(self, repo: Repo, digest: Digest) -> None:
        self._check()
        with self._changing:
            self._noted.get(repo, {}).pop(digest, None)

    def correct(self, repo: Repo, content: Mapping[Digest, int | None]) -> None:
        self._check()
        with self._changing:
            noted = self._noted.setdefault(repo, {})
            for digest, size in content.items():
                if size is None:
                    noted.pop(digest, None)
                else:
                    noted.setdefault(digest, size)

    def usage(self, scope: str) -> int:
        self._check()
        return sum(self._content(scope).values())

    def size(self, repo: Repo) -> int:
        self._check()
        return sum(self._noted.get(repo, {}).values())

    def adds(self, scope: str, digest: Digest) -> bool:
        self._check()
        return digest not in self._content(scope)

    def holders(self, digest: Digest, most: int) -> Sequence[Repo]:
        self._check()
        return [repo for repo, noted in self._noted.items() if digest in noted][:most]

    def repositories(self) -> Sequence[Repo]:
        self._check()
        return [repo for repo, noted in self._noted.items() if noted]

    def noted(self, repo: Repo) -> Sequence[Digest]:
        self._check()
        return list(self._noted.get(repo, {}))

    def is_complete(self) -> bool:
        self._check()
        return self._missed == self._completed

    def prepare(self) -> int:
        self._check()
        return self._missed

    def completed(self, missed: int) -> None:
        self._check()
        self._completed = missed

    def close(self) -> None:
        """Does nothing: there are no files."""

    def _check(self) -> None:
        if self.fails:
            self._missed += 1
            raise IndexUnavailable("the ledger failed")

    def _content(self, scope: str) -> dict[Digest, int]:
        content: dict[Digest, int] = {}
        for repo, noted in self._noted.items():
            if scope in self._scopes.of(repo):
                content |= noted
        return content
