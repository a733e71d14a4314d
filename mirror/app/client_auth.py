"""Builds the access control for clients from the configuration."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import Final

from mirror.access import oidc as issuer_of
from mirror.access.audit import AuditLog
from mirror.access.authentication import Authentication, Nobody
from mirror.access.htpasswd import Htpasswd
from mirror.access.oidc import Issuer, Issuers
from mirror.access.own_tokens import IssuedTokens, read_keys
from mirror.access.password_queue import PasswordQueue
from mirror.access.robots import ROBOTS, USES, Robots
from mirror.access.static_tokens import StaticToken, StaticTokens
from mirror.app.repositories import Repositories
from mirror.app.storage import Storage
from mirror.config import Config, IssuerSettings, access_policy, named_claims, virtual_rules
from mirror.hosting.journal_looks import JournalLooks
from mirror.policy.access_rules import AuthMethod
from mirror.policy.cluster.journal_names import OPERATORS
from mirror.ports import Authenticator, Membership
from mirror.server.registry.access_control import AccessControl
from mirror.server.registry.client_addresses import ClientAddresses
from mirror.store.objects.record_tree import Reads
from mirror.trust.upstream_access import Verifier

#: Passwords checked at once. Each check takes a tenth of a second of a core, so guessing must not use all cores.
_CHECKING_THREADS = 2
#: Seconds after which a robot that was revoked at another replica is refused here, at most.
_ROBOTS_AGE: Final = 1.0


def _open_look(config: Config, storage: Storage) -> Callable[[], Awaitable[object]] | None:
    """What is awaited in a cluster before a robot is believed; None otherwise."""
    use = storage.bucket
    if use is None or use.journals is None:
        return None
    looks = JournalLooks(use.journals, use.threads.looks, max(config.hosting.tag_freshness, _ROBOTS_AGE))
    return lambda: looks.look(OPERATORS)


async def open_gate(
    config: Config,
    storage: Storage,
    repositories: Repositories,
    addresses: ClientAddresses,
    stack: AsyncExitStack,
    now: Callable[[], float],
) -> AccessControl | None:
    """The access control, or None if every client may pull everything without logging in, and nobody may push.

    What is opened is closed by `stack`. `now` is in epoch seconds.
    """
    access = config.access
    verified = {entry.name for entry in config.upstream if entry.access == "verify"}
    if access.is_open and not verified and not config.hosted:
        return None
    key_file = access.token_key_file or storage.layout.root / "token.key"
    keys = await asyncio.to_thread(read_keys, key_file, create=access.token_key_file is None)
    issued = IssuedTokens(keys, lifetime=access.token_lifetime)
    threads = None if storage.bucket is None else storage.bucket.threads.operators
    robots = Robots(
        storage.stored.json(ROBOTS, Reads.LENIENT),
        storage.records(USES),
        now=now,
        threads=threads,
        look=_open_look(config, storage),
    )
    stack.push_async_callback(robots.aclose)
    tokens = StaticTokens(
        StaticToken(entry.name, entry.token.get_secret_value(), frozenset(entry.groups))
        for entry in access.token
        if entry.token is not None
    )
    ways: list[Authenticator] = [issued, robots, tokens]
    members: dict[AuthMethod, Membership] = {
        AuthMethod.ROBOT: robots,
        AuthMethod.TOKEN: tokens,
        AuthMethod.PASSWORD: Nobody(),
    }
    if access.client_ca is None:
        members[AuthMethod.CERTIFICATE] = Nobody()
    if not verified:
        members[AuthMethod.UPSTREAM] = Nobody()
    issuers = [Issuer(_issuer(entry, named_claims(access, entry.title))) for entry in access.issuer]
    for issuer in issuers:
        stack.push_async_callback(issuer.aclose)
    ways += issuers
    members[AuthMethod.ISSUER] = Issuers(issuers)
    if access.htpasswd is not None:
        checking = ThreadPoolExecutor(_CHECKING_THREADS, "check")
        stack.callback(checking.shutdown, wait=False, cancel_futures=True)
        named = {name for listed in access.groups.values() for name in listed}
        groups = {name: frozenset(group for group, listed in access.groups.items() if name in listed) for name in named}
        accounts = Htpasswd(access.htpasswd, checking, groups, queue=PasswordQueue(_CHECKING_THREADS))
        await asyncio.to_thread(accounts.load)
        ways.append(accounts)
        members[AuthMethod.PASSWORD] = accounts
    authentication = Authentication(ways, members, foreign=bool(verified))
    stack.push_async_callback(authentication.aclose)
    verifier = Verifier(verified_for=access.verified_for, verified_while_down=access.verified_while_down)
    stack.push_async_callback(verifier.aclose)
    return AccessControl(
        authentication,
        access_policy(config),
        issued,
        repositories.upstreams.table,
        repository_of=repositories.router.guarded,
        verifier_of=lambda registry: verifier if repositories.upstreams.table.label(registry) in verified else None,
        virtual=virtual_rules(config),
        realm=access.realm,
        addresses=addresses,
    )


def open_audit(config: Config, stack: AsyncExitStack) -> AuditLog | None:
    """The audit log, or None if none is configured. `stack` closes it."""
    if config.access.audit_log is None:
        return None
    audit = AuditLog(config.access.audit_log)
    stack.callback(audit.close)
    return audit


def _issuer(entry: IssuerSettings, claims: frozenset[str]) -> issuer_of.OidcIssuer:
    return issuer_of.OidcIssuer(
        entry.issuer,
        entry.audience,
        entry.keys_url,
        entry.keys_file,
        entry.issuer_ca_file,
        entry.bearer_file,
        entry.name_claim,
        entry.groups_claim,
        entry.prefix,
        entry.title,
        claims,
    )
