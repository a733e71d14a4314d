"""The rules for repositories that follow from the routes of the configuration."""

from __future__ import annotations

from collections.abc import Callable

from mirror.config import (
    Config,
    RouteSettings,
    routing_table,
)
from mirror.oci.reference import Repo
from mirror.policy.content_rules import ContentLists, ContentRule, patterns
from mirror.policy.freshness import FreshnessRule, forgotten_after
from mirror.policy.history import AgeRule
from mirror.policy.routing import compile_pattern
from mirror.policy.rules import LazyRule, RouteRule
from mirror.values.sizes import parse_size


def route_rule(route: RouteSettings, config: Config) -> RouteRule:
    return RouteRule(
        FreshnessRule(route.tag_ttl, route.stale_while_down),
        offline=config.offline or route.offline,
        age=AgeRule(route.minimum_age, serve_new=route.minimum_age_new_tags == "serve"),
        content=ContentRule(
            route.require_digest,
            None if route.max_size is None else parse_size(route.max_size),
            tuple(str(path) for path in route.signed_by),
        ),
        prefetch=route.prefetch,
        lazy=LazyRule(route.lazy_share, route.lazy_pause) if route.ranges == "lazy" else None,
    )


def age_rule(config: Config, repo: Repo) -> AgeRule:
    """The minimum age that the first matching route sets for a repository, for the command line. Sealed and hosted ones
    have none.
    """
    if routing_table(config).hosts_registry(repo.registry):
        return AgeRule()
    rule = route_of(config, repo)[1]
    return AgeRule() if rule.offline else rule.age


def route_of(config: Config, repo: Repo) -> tuple[str | None, RouteRule]:
    """The pattern of the first matching route (None if no route matches), and the rule for the repository; for the
    command line.
    """
    return _routes(config)(repo)


def _routes(config: Config) -> Callable[[Repo], tuple[str | None, RouteRule]]:
    """`route_of` for many repositories."""
    routes = [(compile_pattern(route.match), route.match, route_rule(route, config)) for route in config.route]
    otherwise = None, RouteRule(offline=config.offline)

    def first(repo: Repo) -> tuple[str | None, RouteRule]:
        return next(((match, rule) for pattern, match, rule in routes if pattern.fullmatch(str(repo))), otherwise)

    return first


def forgetting_rule(config: Config) -> Callable[[Repo], float | None]:
    """A function that returns after how many seconds the records of a repository are forgotten; None: never, as those
    of hosted repositories, and of registries that are not configured.
    """
    table, route, after = routing_table(config), _routes(config), config.store.forget_after

    def of_repository(repo: Repo) -> float | None:
        found = table.registry(repo.registry)
        if found is None or found[1].hosted or found[1].members:
            return None
        rule = route(repo)[1]
        return forgotten_after(after, rule.freshness, minimum_age=rule.age.minimum, sealed=rule.offline)

    return of_repository


def content_lists(config: Config) -> ContentLists:
    """The images that are allowed and denied, for all registries."""
    return ContentLists(patterns(config.content.allow), patterns(config.content.deny))


def upstream_urls(config: Config, registry: str) -> list[str]:
    """The URLs at which a registry is asked, in order, without credentials; empty if the registry is unknown."""
    route = routing_table(config).registry(registry)
    entries = [entry for entry in config.upstream if route and entry.name == route[1].name]
    return [
        url
        for entry in entries
        for url in (*(mirror.url for mirror in entry.endpoints), entry.url or f"https://{registry}")
    ]
