"""Finds the repository that a request means, and makes it: proxied, sealed or hosted, guarded by rules or not; or a
virtual one, which stands for several of these.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

from mirror.aio.caches import LruCache
from mirror.aio.closing import close_all
from mirror.errors import BucketUnfit, NameUnknown
from mirror.graph.listed_repositories import ListedRepositories
from mirror.oci.reference import Repo
from mirror.policy.content_rules import ContentLists, ContentRule
from mirror.policy.routing import RoutingTable, compile_pattern
from mirror.policy.rules import RouteRule
from mirror.ports import Upstream
from mirror.repository.guarded import GuardedHosted, GuardedProxy, GuardedRepository, Signatures
from mirror.repository.hosted import HostedRepository
from mirror.repository.protocol import Readable
from mirror.repository.proxied import ProxiedRepository
from mirror.repository.proxied_blobs import ProxiedBlobs
from mirror.repository.sealed import SealedRepository
from mirror.repository.shared import Shared
from mirror.trust.cosign import PublicKey

#: Seconds for which a list of all repositories is kept if no process adds a repository.
_LIST_EVERY: Final = 10.0
#: Repository objects that are kept. Clients choose the names, so their number must be bounded.
_MOST: Final = 10_000


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
        shared: Shared,
        *,
        hosted: Callable[[Repo], HostedRepository] | None = None,
        virtual: Callable[[Repo], Readable] | None = None,
        lists: ContentLists | None = None,
        keys: Mapping[str, PublicKey] | None = None,
        refuses: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """`rules` are (pattern, rule) pairs; the first that matches applies. `hosted` makes the repositories of hosted
        registries, `virtual` those of virtual ones. `keys` maps the names that rules use. `refuses` says of the
        registry of an upstream that its names are hosted ones in the bucket; after a change, call `forget`.
        """
        self._refuses = refuses
        self._table = table
        self._rules = [(compile_pattern(pattern), rule) for pattern, rule in rules]
        self._default_rule = default_rule
        #: True if there is a route on which unverified parts of blobs are sent.
        self.gives_parts: Final = any(rule.lazy is not None for _, rule in rules)
        self._upstream_for = upstream_for
        self._shared = shared
        self._hosted = hosted
        self._virtual = virtual
        self._lists = lists or ContentLists()
        self._keys = keys or {}
        self._signatures = Signatures()
        self._forgotten: list[Callable[[], None]] = []
        #: The repositories that have content here and whose registries are still configured.
        self.repositories: Final = ListedRepositories(
            shared.catalog.repositories,
            shared.catalog.repositories_added,
            wanted=self._is_real,
            catch_up=shared.catch_up,
            keeps=_LIST_EVERY,
            now=shared.caches.now,
        )
        self._made: LruCache[Repo, ProxiedRepository | SealedRepository | HostedRepository] = LruCache(
            _MOST, name="repositories"
        )
        self._members: LruCache[Repo, Readable] = LruCache(_MOST, name="members")
        self._routed: LruCache[tuple[str, str | None, str | None], Readable] = LruCache(_MOST, name="routes")

    def __repr__(self) -> str:
        return f"<Router {len(self._made)} repositories, {len(self._routed)} names>"

    def resolve(self, name: str, *, host: str | None, ns: str | None) -> Readable:
        """Returns the repository that the request means, as clients may see it. Raises `NameInvalid`, `NameUnknown`."""
        # unknown hosts do not affect routing, and a client can send any number of them, so they stay out of the key
        host = host if self._table.meant_by(host) else None
        key = (name, host, ns)
        repository = self._routed.get(key)
        if repository is None:
            repo = self._table.route(name, host=host, ns=ns)
            virtual = self._virtual if self._table.members(repo.registry) else None
            repository = self._routed[key] = virtual(repo) if virtual is not None else self.guarded(repo)
        return repository

    def member(self, repo: Repo) -> Readable:
        """Returns the repository of a virtual registry's member, as clients may see it."""
        repository = self._members.get(repo)
        if repository is None:
            repository = self._members[repo] = self.guarded(repo)
        return repository

    def guarded(self, repo: Repo) -> Readable:
        """Returns the repository of a checked name, guarded by the rules about its content if there are any. It is also
        `Fetchable` if it has an upstream, `Writable` if it is hosted.
        """
        inner, rule = self.repository(repo), self.rule_for(repo).content
        if rule == ContentRule() and self._lists == ContentLists():
            return inner
        keys = [self._keys[name] for name in rule.signed_by]
        guards = self._lists, rule, keys, self._signatures
        if isinstance(inner, HostedRepository):
            return GuardedHosted(inner, inner, *guards)
        stored = self._shared.stored(repo)
        if isinstance(inner, ProxiedRepository):
            return GuardedProxy(inner, stored, *guards)
        return GuardedRepository(inner, stored, *guards)

    def repository(self, repo: Repo) -> ProxiedRepository | SealedRepository | HostedRepository:
        """Returns the repository of a checked name, without rules about its content. Raises `NameUnknown` for a virtual
        one.
        """
        repository = self._made.get(repo)
        if repository is None:
            repository = self._made[repo] = self._make(repo)
        return repository

    def for_peer(self, repo: Repo, *, hops: int, besides: Collection[str]) -> ProxiedBlobs | None:
        """Returns the cached blobs of a repository as another replica may have them, which asks for a client whose
        rights it has checked, by the same rules; None if none are given. `hops` replicas wait for them, and the members
        `besides` are not asked for any.
        """
        found = self._table.registry(repo.registry)
        if found is None or found[0] != repo.registry or found[1].hosted or found[1].members:
            return None
        if self._refuses(repo.registry) or self.rule_for(repo).offline or self._shared.peers(repo) is None:
            return None
        stored = self._shared.stored(repo)
        lazy = self.rule_for(repo).lazy
        return self._shared.blobs(stored, self._upstream_for(repo.registry), lazy, hops=hops, besides=besides)

    def _make(self, repo: Repo) -> ProxiedRepository | SealedRepository | HostedRepository:
        if self._hosted is not None and self._table.hosts_registry(repo.registry):
            return self._hosted(repo)
        if members := self._table.members(repo.registry):
            raise NameUnknown(f"{repo.registry} is virtual: name one of its members ({', '.join(members)})")
        if self._refuses(repo.registry):
            raise BucketUnfit(f"{repo.registry} is an upstream, and the bucket has hosted images of it")
        rule = self.rule_for(repo)
        if rule.offline:
            return self._shared.sealed(repo)
        return self._shared.proxied(repo, self._upstream_for(repo.registry), rule)

    def forget(self) -> None:
        """Drops all repository objects, after their upstreams have been replaced. They are made again when needed."""
        self._made.clear()
        self._members.clear()
        self._routed.clear()
        for forgotten in self._forgotten:
            forgotten()

    def when_forgotten(self, forgotten: Callable[[], None]) -> None:
        """Calls this after each `forget` from now on: for those who keep answers of repositories."""
        self._forgotten.append(forgotten)

    def rule_for(self, repo: Repo) -> RouteRule:
        """Returns the route rule of this repository."""
        text = str(repo)
        return next((rule for pattern, rule in self._rules if pattern.fullmatch(text)), self._default_rule)

    def _is_real(self, repo: Repo) -> bool:
        found = self._table.registry(repo.registry)
        return found is not None and not found[1].members

    async def aclose(self) -> None:
        """Cancels the search for signatures, and what lists repositories. Repeatable."""
        await close_all(self._signatures.aclose, self.repositories.aclose)
