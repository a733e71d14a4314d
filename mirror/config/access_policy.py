"""The access policy that follows from the settings. No file is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from mirror.config.settings import Config
from mirror.config.tables.access_settings import AccessSettings
from mirror.policy.access_rules import Policy, Rule, actions, read_claims


def access_policy(config: Config) -> Policy:
    """The rules that tell who may do what."""
    access = config.access
    return Policy(
        tuple(
            Rule(
                rule.effect == "allow",
                tuple(_with_issuer(caller, access) for caller in rule.callers),
                actions(rule.actions),
                tuple(rule.repositories),
            )
            for rule in access.rule
        ),
        anonymous=access.anonymous,
        hosted=frozenset(entry.name for entry in config.hosted),
        virtual=frozenset(entry.name for entry in config.virtual),
    )


def _with_issuer(caller: str, access: AccessSettings) -> str:
    """The entry of a rule's `callers`; one about claims names its issuer, which need not be written if there is one."""
    if not caller.startswith("claim:"):
        return caller
    claims = read_claims(caller)
    return str(claims if claims.issuer else replace(claims, issuer=access.issuer[0].title))


def named_claims(access: AccessSettings, issuer: str) -> frozenset[str]:
    """The claims of this issuer's tokens that rules name."""
    entries = (caller for rule in access.rule for caller in rule.callers if caller.startswith("claim:"))
    read = (read_claims(_with_issuer(caller, access)) for caller in entries)
    return frozenset(name for claims in read if claims.issuer == issuer for name, _ in claims.wanted)


def wrong_issuers(access: AccessSettings) -> Iterator[str]:
    """Mistakes in rules that name issuers."""
    titles = [entry.title for entry in access.issuer]
    known = ", ".join(titles) or "there is none"
    for number, rule in enumerate(access.rule, 1):
        for place, caller in enumerate(rule.callers, 1):
            where = f"access.rule[{number}].callers[{place}]"
            if not caller.startswith(("claim:", "issuer:")):
                continue
            name = read_claims(caller).issuer if caller.startswith("claim:") else caller.removeprefix("issuer:")
            if not name and len(titles) != 1:
                yield f"{where}: names no issuer: write claim:issuer=NAME,… (names of [[access.issuer]]: {known})"
            elif name and "*" not in name and name not in titles:
                yield f"{where}: {name!r} is not the name of an [[access.issuer]] ({known})"
            elif titles.count(name) > 1:
                yield f"{where}: {titles.count(name)} issuers are called {name}; set name in [[access.issuer]]"
