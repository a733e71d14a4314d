"""Finds the repository that a request means, proxied or sealed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from mirror.oci.reference import Repo
from mirror.policy.content_rules import ContentLists, ContentRule
from mirror.policy.routing import RoutingTable, compile_pattern
from mirror.policy.rules import RouteRule
from mirror.ports import Upstream
from mirror.repository.guarded import GuardedRepository, Signatures
from mirror.repository.protocol import PlainRepository, Repository
from mirror.repository.proxied import ProxiedRepository
from mirror.repository.sealed import SealedRepository
from mirror.repository.shared import Shared
from mirror.trust.cosign import PublicKey

#: Seconds for which a list of all repositories is believed if no process adds a repository.
_LIST_EVERY: float = 10.0
#: Repository objects that are kept. Clients choose the names, so their number must be bounded.
_MOST: int = 10_000


class Router:
    """Makes repositories from names. An upstream is made by `upstream_for` when it is first needed; a sealed repository
    has none.
    """

    def __init__(
        self,
        table: RoutingTable,
        rules: Sequence[tuple[str, RouteRule]],
        default_rule: RouteRule,
        upstream_for: Callable[[str], Upstream],
        shelf: Shared,
        *,
        lists: ContentLists | None = None,
        keys: Mapping[str, PublicKey] | None = None,
    ) -> None:
        """`rules` are (pattern, rule) pairs; the first that matches applies. `keys` maps the names that rules use."""
        self._table = table
        self._rules = [(compile_pattern(pattern), rule) for pattern, rule in rules]
        self._default_rule = default_rule
        self._upstream_for = upstream_for
        self._shelf = shelf
        self._lists = lists or ContentLists()
        self._keys = keys or {}
        self._signatures = Signatures()
        self._listed: tuple[Repo, ...] = ()
        self._listed_at = float("-inf")
        self._listed_added = -1
        self._made: dict[Repo, PlainRepository] = {}
        self._routed: dict[tuple[str, str | None, str | None], Repository] = {}

    def resolve(self, name: str, *, host: str | None, ns: str | None) -> Repository:
        """Returns the repository that the request means, as clients may see it. Raises `NameInvalid`, `NameUnknown`."""
        # unknown hosts do not affect routing, and a client can send any number of them, so they stay out of the key
        host = host if self._table.meant_by(host) else None
        key = (name, host, ns)
        found = self._routed.get(key)
        if found is None:
            found = self.guarded(self._table.route(name, host=host, ns=ns))
            if len(self._routed) >= _MOST:
                self._routed.clear()
            self._routed[key] = found
        return found

    def guarded(self, repo: Repo) -> Repository:
        """Returns the repository of a checked name, guarded by the rules about its content if there are any."""
        inner, rule = self.repository(repo), self.rule_for(repo).content
        if rule == ContentRule() and self._lists == ContentLists():
            return inner
        return GuardedRepository(
            inner, self._lists, rule, [self._keys[name] for name in rule.signed_by], self._signatures
        )

    def repository(self, repo: Repo) -> PlainRepository:
        """Returns the repository of a checked name, without rules about its content."""
        found = self._made.get(repo)
        if found is None:
            if len(self._made) >= _MOST:
                self._made.clear()
            found = self._made[repo] = self._make(repo)
        return found

    def _make(self, repo: Repo) -> PlainRepository:
        rule = self.rule_for(repo)
        if rule.offline:
            return SealedRepository(repo, self._shelf)
        return ProxiedRepository(repo, self._upstream_for(repo.registry), rule, self._shelf)

    def forget(self) -> None:
        """Drops all repository objects, after their upstreams have been replaced. They are made again when needed."""
        self._made.clear()
        self._routed.clear()

    def rule_for(self, repo: Repo) -> RouteRule:
        """Returns the route rule of this repository."""
        text = str(repo)
        return next((rule for pattern, rule in self._rules if pattern.fullmatch(text)), self._default_rule)

    async def repositories(self) -> Sequence[Repo]:
        """Returns the repositories that have content here, sorted. The disk is read every few seconds at most, and
        immediately if this or another process has added a repository.
        """
        now, added = self._shelf.now(), self._shelf.catalog.repositories_added()
        if added != self._listed_added or not 0 <= now - self._listed_at < _LIST_EVERY:
            # the key includes the counter: a read that began before the last addition may lack that repository
            self._listed = await self._shelf.once.run(
                ("repositories", added), lambda: asyncio.to_thread(self._read_repositories)
            )
            self._listed_at, self._listed_added = now, added
        return self._listed

    def _read_repositories(self) -> tuple[Repo, ...]:
        """Blocking: returns the repositories on the disk whose registry is still configured, sorted."""
        found = self._shelf.catalog.repositories()
        return tuple(sorted(repo for repo in found if self._table.registry(repo.registry) is not None))

    async def aclose(self) -> None:
        """Cancels the search for signatures. Repeatable."""
        await self._signatures.aclose()
