"""Checks of several settings together, and of the files that they name."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterable, Iterator
from typing import Final

from mirror.access.htpasswd import check_htpasswd
from mirror.access.own_tokens import check_keys
from mirror.config import values
from mirror.config.access_policy import access_policy, wrong_issuers
from mirror.config.bucket_checks import bucket_hints, check_bucket
from mirror.config.cluster_checks import check_cluster, cluster_hints
from mirror.config.event_checks import check_events, event_hints
from mirror.config.files import is_absent, is_readable, unreadable
from mirror.config.routing_table import routing_table
from mirror.config.settings import Config, RouteSettings, ServerSettings, VirtualSettings
from mirror.config.tables.access_settings import AccessSettings
from mirror.config.tables.hosting_settings import HostedSettings
from mirror.config.tables.upstream_settings import PUBLIC, ReachSettings, UpstreamSettings
from mirror.config.virtual_rules import stored_name
from mirror.errors import ConfigError, RequestError
from mirror.policy.access_rules import Action
from mirror.policy.hosted.retention_rules import KeepRule
from mirror.policy.routing import can_match_below, compile_pattern
from mirror.policy.upstream.url_bounds import needs_private, parse_url
from mirror.trust.cosign import read_key
from mirror.upstream.credentials.docker_config import DockerConfig
from mirror.upstream.credentials.providers import missing_library

_FILES: Final = ("docker_config", "ca_file", "key_file", "token_file", "client_certificate", "client_key")


def _check_reach(reach: ReachSettings, name: str) -> list[str]:
    mistakes = []
    if reach.provider and (missing := missing_library(reach.provider)):
        mistakes.append(f"provider: {reach.provider} {missing}")
    mistakes += unreadable({setting: getattr(reach, setting) for setting in _FILES})
    return mistakes or _check_contents(reach, name)


def _check_contents(reach: ReachSettings, name: str) -> list[str]:
    """Mistakes in the content of the files that one address needs; all of them can be read."""
    mistakes = []
    if reach.ca_file is not None:
        try:
            ssl.create_default_context(cafile=reach.ca_file)
        except (OSError, ssl.SSLError):
            mistakes.append(f"ca_file: {reach.ca_file} contains no certificate")
    if reach.client_certificate is not None and reach.client_key is not None:
        pair = reach.client_certificate, reach.client_key
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(*pair, password=lambda: "")
        except (OSError, ssl.SSLError):
            mistakes.append(f"client_certificate, client_key: {pair[0]} and {pair[1]} do not belong together")
    if reach.docker_config is not None:
        try:
            DockerConfig(reach.docker_config, [name]).check()
        except ConfigError as error:
            mistakes += [f"docker_config: {mistake}" for mistake in error.mistakes]
    return mistakes


def cross_check(config: Config) -> list[str]:
    """Every mistake that shows only in several settings together, or in the files that they name."""
    mistakes = [*_check_server(config.server), *_check_upstreams(config.upstream), *_check_names(config)]
    if config.store.root.exists() and not config.store.root.is_dir():
        mistakes.append(f"store.root: {config.store.root} is not a folder")
    names = {name for _, registry in _registries(config) for name in (registry.name, *registry.aliases)}
    mistakes += [*_check_access(config), *_check_admin(config), *_check_routes(config.route)]
    verified = [entry.name for entry in config.upstream if entry.access == "verify"]
    if verified and config.offline:
        mistakes.append(f"offline: {', '.join(verified)} with access = verify must be contacted for each caller")
    if config.default_registry and config.default_registry not in names:
        why = _not_public(config.default_registry)
        mistakes.append(f"default_registry: {config.default_registry} is no upstream, hosted or virtual registry{why}")
    mistakes += [*_check_virtual(config), *_check_syncs(config), *_check_replications(config)]
    mistakes += [
        *check_events(config.events.endpoint),
        *check_bucket(config.store, config.bucket),
        *check_cluster(config),
    ]
    if url := config.index.url.get_secret_value():
        # imported here: every command reads the configuration, and few configurations need the Redis library
        from mirror.index.redis_address import parse_redis_url

        try:
            parse_redis_url(url)
        except ConfigError as error:
            mistakes += [f"index.url: {mistake}" for mistake in error.mistakes]
    return mistakes


def hints(config: Config) -> list[str]:
    """Warnings about settings that are valid, but with which requests to the registry will most likely fail."""
    warnings = []
    for number, upstream in enumerate(config.upstream, 1):
        for inner, reach in upstream.addresses:
            url = getattr(reach, "url", None) or f"https://{upstream.name}"
            if url.endswith("/v2"):
                warnings.append(f"upstream[{number}]{inner}.url: leave out /v2 at its end: the mirror adds it itself")
            if not upstream.name.startswith("*.") and not reach.private_network and needs_private(url):
                warnings.append(
                    f"upstream[{number}]{inner}: {parse_url(url).host} looks like a name in a private network; "
                    "it may resolve to a private address only with private_network = true"
                )
    return [
        *warnings,
        *_closed_to_all(config),
        *_open_to_all(config),
        *_matching_nothing(config),
        *_immutable_hints(config),
        *_retention_hints(config),
        *_about_virtual(config),
        *event_hints(config, _may_be_about),
        *bucket_hints(config.store, config.bucket),
        *cluster_hints(config),
        *_replication_hints(config),
    ]


def _closed_to_all(config: Config) -> list[str]:
    """Warnings about hosted registries that nobody may use, because no rule allows it."""
    warnings, policy = [], access_policy(config)
    for number, hosted in enumerate(config.hosted, 1):
        wanted = (Action.PULL,) if hosted.read_only else (Action.PULL, Action.PUSH)
        missing = [action.value for action in wanted if not policy.may_anybody(action, hosted.name)]
        if missing:
            warnings.append(
                f"hosted[{number}]: no [[access.rule]] allows anybody to {' or '.join(missing)}; it needs one with "
                f'repositories = ["{hosted.name}/**"]'
            )
    return warnings


def _open_to_all(config: Config) -> list[str]:
    """Warnings about registries that are pushed to, from which everybody may pull with the credentials of the pushes:
    what is replicated there, and whatever else that account sees.
    """
    policy = access_policy(config)
    return [
        f"upstream[{number}]: everybody may pull from {upstream.name}, with the credentials that push there; say who "
        f'may, by a rule with repositories = ["{upstream.name}/**"]'
        for number, upstream in enumerate(config.upstream, 1)
        if upstream.push and upstream.has_credentials and policy.is_open(upstream.name)
    ]


def _matching_nothing(config: Config) -> list[str]:
    """Warnings about rules whose patterns match no configured registry: what they should close may stay open."""
    tables = config.upstream, config.hosted, config.virtual
    names = [entry.name for table in tables for entry in table]
    return [
        f"access.rule[{number}].repositories[{place}]: {pattern} matches no registry that is configured here"
        for number, rule in enumerate(config.access.rule, 1)
        for place, pattern in enumerate(rule.repositories, 1)
        if not any(_may_be_about(pattern, name) for name in names)
    ]


def _immutable_hints(config: Config) -> list[str]:
    """Warnings about patterns of `[[hosted.immutable]]` that cover no tag."""
    warnings = []
    for number, hosted in enumerate(config.hosted, 1):
        for place, entry in enumerate(hosted.immutable, 1):
            idle = [tags for tags in entry.tags if tags in entry.except_ or "*" in entry.except_]
            if idle:
                where = f"hosted[{number}].immutable[{place}].tags"
                warnings.append(f"{where}: {', '.join(idle)} makes no tag immutable, because of except")
    return warnings


def _retention_hints(config: Config) -> list[str]:
    """Warnings about rules of retention that do nothing, or more than was meant."""
    warnings = []
    for number, hosted in enumerate(config.hosted, 1):
        for place, entry in enumerate(hosted.retention, 1):
            where = f"hosted[{number}].retention[{place}]"
            deletes = entry.delete or entry.delete_untagged_after is not None
            if not deletes and not any(each.delete for each in hosted.retention):
                warnings.append(f"{where}: deletes nothing: it has neither delete nor delete_untagged_after")
            warnings += [
                f"{where}.delete[{rule_place}]: deletes all {rule.rule}, of any age: there is no keep rule"
                for rule_place, rule in enumerate(entry.delete, 1)
                if not rule.rule.not_within and not any(each.keep for each in hosted.retention)
            ]
            warnings += [
                f"{where}.keep[{rule_place}]: keeps every tag of these repositories, whatever delete says"
                for rule_place, rule in enumerate(entry.keep, 1)
                if "*" in rule.tags and rule.rule == KeepRule(rule.choice)
            ]
            if deletes and hosted.read_only:
                warnings.append(f"{where}: deletes nothing, because of read_only")
            if deletes and not hosted.keep_deleted:
                warnings.append(f"{where}: what it deletes cannot be undeleted, because of keep_deleted = 0")
            warnings += [
                f"{where}.repositories: {name} is no repository that may be pushed to"
                for name in entry.repositories
                if not re.search(r"[*?]", name)
                and not any(compile_pattern(pattern).fullmatch(name) for pattern in hosted.repositories)
            ]
    return warnings


def _may_be_about(pattern: str, registry: str) -> bool:
    if not registry.startswith("*."):
        return can_match_below(pattern, f"{registry}/")
    # the name stands for every host below a domain
    first = pattern.partition("/")[0]
    return first.endswith(registry[1:]) or any(wild in first for wild in "*?")


def _about_virtual(config: Config) -> list[str]:
    """Warnings about virtual registries: patterns that are about one, and so about nothing, and members that do not do
    what they seem to do.
    """
    warnings: list[str] = []
    patterns = [
        *_patterns("access.rule", "repositories", (rule.repositories for rule in config.access.rule)),
        *_patterns("events.endpoint", "repositories", (one.repositories for one in config.events.endpoint)),
        *_patterns("route", "match", ([route.match] for route in config.route)),
        *_patterns("pin", "match", ([pin.match] for pin in config.pin)),
        *((f"content.deny[{place}]", pattern) for place, pattern in enumerate(config.content.deny, 1)),
        *((f"content.allow[{place}]", pattern) for place, pattern in enumerate(config.content.allow, 1)),
    ]
    hosted = {name: entry for entry in config.hosted for name in (entry.name, *entry.aliases)}
    for number, virtual in enumerate(config.virtual, 1):
        warnings += [
            f"{where}: {pattern} is about the virtual registry {virtual.name}, where it has no effect; "
            f"write it for its members ({', '.join(virtual.members)})"
            for where, pattern in patterns
            if pattern.partition("/")[0] in (virtual.name, *virtual.aliases)
        ]
        kinds = [name in hosted for name in virtual.members]
        warnings += [
            f"virtual[{number}].members[{place}]: {name} is hosted here, so it decides before the upstreams, wherever "
            "it stands"
            for place, name in enumerate(virtual.members, 1)
            if kinds[place - 1] and not all(kinds[: place - 1])
        ]
        writable = hosted.get(virtual.writable or "")
        if writable is not None and "**" in writable.repositories and not all(kinds):
            warnings.append(
                f"virtual[{number}].writable: whoever may push to {writable.name} can take any name over from the "
                f'upstreams; [[hosted]] repositories of {writable.name} can limit the names: ["team-*/**"]'
            )
    return warnings


def _patterns(table: str, setting: str, entries: Iterable[Iterable[str]]) -> Iterator[tuple[str, str]]:
    for number, patterns in enumerate(entries, 1):
        for place, pattern in enumerate(patterns, 1):
            index = f"[{place}]" if setting == "repositories" else ""
            yield f"{table}[{number}].{setting}{index}", pattern


def _check_admin(config: Config) -> list[str]:
    """A mistake if other machines can reach the admin API, but there is no rule for administrators or they cannot log
    in. Without such a rule, everyone who connects may do everything.
    """
    address, access = config.admin_tcp, config.access
    if address is None or values.is_loopback(address) or (access.has_admins and not access.has_no_login):
        return []
    missing = "a way to log in" if access.has_no_login else 'an [[access.rule]] that allows "admin"'
    return [f"admin.listen: {address} is not a loopback address: that needs {missing} (see docs/admin-api.md)"]


def _check_access(config: Config) -> list[str]:
    access = config.access
    named = {"htpasswd": access.htpasswd, "client_ca": access.client_ca, "token_key_file": access.token_key_file}
    for number, issuer in enumerate(access.issuer, 1):
        named |= {
            f"issuer[{number}].{setting}": getattr(issuer, setting)
            for setting in ("keys_file", "issuer_ca_file", "bearer_file")
        }
    mistakes = [f"access.{mistake}" for mistake in unreadable(named)]
    if access.htpasswd is not None and is_absent(access.htpasswd):
        mistakes[0] += "; `mirror account add NAME` creates it"
    mistakes += [*_unusable_secrets(access), *wrong_issuers(access)]
    if access.client_ca is not None and config.server.tls_certificate is None:
        mistakes.append("access.client_ca: needs server.tls_certificate, because client certificates are part of TLS")
    # a hosted registry can be used by robots alone, which are not part of the configuration
    if not access.anonymous and access.has_no_login and not config.hosted:
        mistakes.append("access: no client could use the mirror: anonymous is false, and there is no way to log in")
    if access.groups and access.htpasswd is None:
        mistakes.append("access.groups: these are groups of accounts; needs access.htpasswd")
    names = [token.name for token in access.token]
    mistakes += [f"access.token: {name!r} is there twice" for name in sorted({n for n in names if names.count(n) > 1})]
    return mistakes


def _unusable_secrets(access: AccessSettings) -> list[str]:
    """Mistakes in the content of the htpasswd file and the token key file. Files that cannot be read are skipped."""
    mistakes: list[str] = []
    for path, check in ((access.htpasswd, check_htpasswd), (access.token_key_file, check_keys)):
        if path is not None and is_readable(path):
            try:
                check(path)
            except ConfigError as error:
                mistakes += error.mistakes
    return mistakes


def _check_routes(routes: Iterable[RouteSettings]) -> list[str]:
    mistakes: list[str] = []
    for number, route in enumerate(routes, 1):
        for key in route.signed_by:
            try:
                read_key(key)
            except ConfigError as error:
                mistakes += [f"route[{number}].{mistake}" for mistake in error.mistakes]
    return mistakes


def _check_server(server: ServerSettings) -> list[str]:
    fixed = [address for address in server.listen if not address.endswith(":0")]
    mistakes = [f"server.listen: {address} is there more than once" for address in sorted(_repeated(fixed))]
    absent = unreadable({"tls_certificate": server.tls_certificate, "tls_key": server.tls_key})
    if server.tls_certificate and server.tls_key and not absent:
        try:
            # an empty passphrase, so that OpenSSL does not ask for one on the terminal
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
                server.tls_certificate, server.tls_key, password=lambda: ""
            )
        except (OSError, ssl.SSLError):
            mistakes.append(
                f"server.tls_certificate, tls_key: {server.tls_certificate} and {server.tls_key} are not PEM "
                "files that belong together, or the key has a passphrase"
            )
    return mistakes + [f"server.{mistake}" for mistake in absent]


def _check_upstreams(upstreams: Iterable[UpstreamSettings]) -> list[str]:
    return [
        f"upstream[{number}]{inner}.{mistake}"
        for number, upstream in enumerate(upstreams, 1)
        for inner, reach in upstream.addresses
        for mistake in _check_reach(reach, upstream.name)
    ]


def _registries(config: Config) -> list[tuple[str, UpstreamSettings | HostedSettings | VirtualSettings]]:
    """All registries, each with the name of its table in the file."""
    return [
        *((f"upstream[{number}]", upstream) for number, upstream in enumerate(config.upstream, 1)),
        *((f"hosted[{number}]", hosted) for number, hosted in enumerate(config.hosted, 1)),
        *((f"virtual[{number}]", virtual) for number, virtual in enumerate(config.virtual, 1)),
    ]


def _check_names(config: Config) -> list[str]:
    """Mistakes in the names and `Host` headers that lead to the registries: two registries must not share one."""
    mistakes: list[str] = []
    names: dict[str, str] = {}
    hosts: dict[str, str] = {}
    for where, registry in _registries(config):
        mistakes += [
            f"{where}: {name} is already the name of {names[name]}"
            for name in (registry.name, *registry.aliases)
            if names.setdefault(name, where) != where
        ]
        mistakes += [
            f"{where}.host_headers: {host} already belongs to {hosts[host.lower()]}"
            for host in registry.host_headers
            if hosts.setdefault(host.lower(), where) != where
        ]
    return mistakes


def _not_public(name: str) -> str:
    """Why a public registry is missing, as the end of a message; empty for other names."""
    known = {entry["name"] for entry in PUBLIC}
    return "; with any [[upstream]], the public registries need one each, too" if name in known else ""


def _check_virtual(config: Config) -> list[str]:
    mistakes: list[str] = []
    table = routing_table(config)
    verified = {entry.name for entry in config.upstream if entry.access == "verify"}
    for number, virtual in enumerate(config.virtual, 1):
        where = f"virtual[{number}]"
        found: dict[str, bool] = {}
        for place, name in enumerate(virtual.members, 1):
            registry = table.registry(name)
            if registry is None:
                why = _not_public(name)
                mistakes.append(f"{where}.members[{place}]: {name} is neither an upstream nor a hosted registry{why}")
            elif registry[1].members:
                mistakes.append(f"{where}.members[{place}]: {name} is virtual itself; write its members")
            elif registry[1].name in verified:
                mistakes.append(
                    f"{where}.members[{place}]: {name} has access = verify: callers would send their credentials for "
                    "it to the whole virtual registry"
                )
            elif registry[0] in found:
                mistakes.append(f"{where}.members[{place}]: {name} is there more than once")
            else:
                found[registry[0]] = registry[1].hosted
        if virtual.writable is not None and not found.get(stored_name(virtual.writable, table)):
            mistakes.append(f"{where}.writable: {virtual.writable} is not one of its members that are hosted here")
        mistakes += [
            f"{where}.refusal_means_absent[{place}]: {name} is not one of its members that are upstreams"
            for place, name in enumerate(virtual.refusal_means_absent, 1)
            if found.get(stored_name(name, table), True)
        ]
    return mistakes


def _repeated(names: Iterable[str]) -> set[str]:
    seen: set[str] = set()
    return {name for name in names if name in seen or seen.add(name)}  # type: ignore[func-returns-value]


def _check_replications(config: Config) -> list[str]:
    mistakes: list[str] = []
    table = routing_table(config)
    settings = {entry.name: entry for entry in config.upstream}
    names: dict[str, int] = {}
    for number, rule in enumerate(config.replication, 1):
        where = f"replication[{number}]"
        if names.setdefault(rule.name, number) != number:
            mistakes.append(f"{where}: {rule.name} is already the name of replication[{names[rule.name]}]")
        if not any(rule.from_.partition("/")[0] == hosted.name for hosted in config.hosted):
            mistakes.append(f"{where}.from: {rule.from_} does not begin with the name of a hosted registry")
        route = table.registry(rule.to)
        upstream = settings.get(route[1].name) if route else None
        if upstream is None:
            mistakes.append(f"{where}.to: {rule.to} is no upstream; it needs an [[upstream]] with push = true")
        elif not upstream.push:
            mistakes.append(f"{where}.to: the upstream {upstream.name} does not say push = true")
    return mistakes


def _replication_hints(config: Config) -> list[str]:
    """Warnings about replication rules that are valid, and do less or more than they seem to."""
    warnings = []
    keeps = {entry.name: entry.keep_deleted for entry in config.hosted}
    for number, rule in enumerate(config.replication, 1):
        where = f"replication[{number}]"
        if config.offline:
            warnings.append(f"{where}: the mirror is sealed (offline), so nothing is sent to {rule.to}")
        if rule.overwrite and not rule.not_moved_by:
            warnings.append(
                f"{where}.overwrite: if {rule.to} replicates back to this mirror, the tags of both sites may change "
                "places again and again; name the login that it uses here in not_moved_by"
            )
        if rule.deletes != "never" and not keeps.get(rule.from_.partition("/")[0], 1.0):
            warnings.append(
                f"{where}.deletes: {rule.from_.partition('/')[0]} has keep_deleted = 0, so no record says what was "
                "deleted, and no deletion is repeated"
            )
    return warnings


def _check_syncs(config: Config) -> list[str]:
    mistakes: list[str] = []
    table = routing_table(config)
    titles: dict[str, int] = {}
    for number, rule in enumerate(config.sync, 1):
        if titles.setdefault(rule.title, number) != number:
            mistakes.append(f"sync[{number}]: {rule.title} is already the name of sync[{titles[rule.title]}]; set name")
        try:
            repo = rule.repository(table)
        except RequestError as error:
            mistakes.append(f"sync[{number}].from: {error}")
            continue
        if table.hosts_registry(repo.registry):
            mistakes.append(f"sync[{number}].from: {repo.registry} is hosted here, so there is nothing to bring in")
    return mistakes
