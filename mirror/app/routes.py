"""How repositories are treated, by the routes of the configuration."""

from __future__ import annotations

from mirror.config import (
    Config,
    RouteSettings,
    routing_table,
)
from mirror.oci.reference import Repo
from mirror.policy.content import ContentLists, ContentRule, patterns
from mirror.policy.freshness import FreshnessRule
from mirror.policy.history import AgeRule
from mirror.policy.routing import compile_pattern
from mirror.policy.rules import RouteRule
from mirror.values.sizes import parse_size

__all__ = ["age_rule", "content_lists", "route_of", "route_rule", "upstream_urls"]


def route_rule(route: RouteSettings, config: Config) -> RouteRule:
    return RouteRule(
        FreshnessRule(route.tag_ttl, route.stale_while_down),
        offline=config.offline or route.offline,
        age=AgeRule(route.minimum_age, serve_new=route.minimum_age_new == "serve"),
        content=ContentRule(
            route.require_digest,
            None if route.max_size is None else parse_size(route.max_size),
            tuple(str(path) for path in route.signed_by),
        ),
        prefetch=route.prefetch,
    )


def age_rule(config: Config, repo: Repo) -> AgeRule:
    """What the first route that fits says of a repository, for the command line; a sealed one has no minimum age."""
    rule = route_of(config, repo)[1]
    return AgeRule() if rule.offline else rule.age


def route_of(config: Config, repo: Repo) -> tuple[str | None, RouteRule]:
    """How a repository is treated, for the command line, and the pattern of the route that says so (None: none)."""
    fitting = (route for route in config.route if compile_pattern(route.match).fullmatch(str(repo)))
    return next(
        ((route.match, route_rule(route, config)) for route in fitting), (None, RouteRule(offline=config.offline))
    )


def content_lists(config: Config) -> ContentLists:
    """What is allowed and denied wherever it comes from."""
    return ContentLists(patterns(config.content.allow), patterns(config.content.deny))


def upstream_urls(config: Config, registry: str) -> list[str]:
    """Where a registry that the table knows is asked, in this order; without credentials."""
    known = routing_table(config).registry(registry)
    found = [one for one in config.upstream if known and one.name == known[1].name]
    return [
        url for one in found for url in (*(mirror.url for mirror in one.endpoints), one.url or f"https://{registry}")
    ]
