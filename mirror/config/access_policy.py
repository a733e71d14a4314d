"""The access policy that follows from the settings. No file is read."""

from __future__ import annotations

from mirror.config.settings import Config
from mirror.policy.access_rules import Policy, Rule, actions


def access_policy(config: Config) -> Policy:
    """The rules that tell who may do what."""
    return Policy(
        tuple(
            Rule(rule.effect == "allow", tuple(rule.callers), actions(rule.actions), tuple(rule.repositories))
            for rule in config.access.rule
        ),
        anonymous=config.access.anonymous,
        hosted=frozenset(entry.name for entry in config.hosted),
    )
