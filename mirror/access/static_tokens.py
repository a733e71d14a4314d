"""Tokens that stand in the configuration: for machines that cannot log in in any other way."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from mirror.oci.authorization import CallerCredentials
from mirror.policy.access import AuthMethod, Identity

__all__ = ["StaticToken", "StaticTokens"]


@dataclass(frozen=True, slots=True)
class StaticToken:
    """`name` is how it is called in rules and logs."""

    name: str
    secret: str = field(repr=False)
    groups: frozenset[str] = frozenset()


class StaticTokens:
    """See `mirror.ports.Authenticator`. A token may come as a bearer, or as the password of any user name."""

    def __init__(self, tokens: Iterable[StaticToken]) -> None:
        # looked up by hash: how long that takes says nothing about the token
        self._known = {_hashed(token.secret): Identity(token.name, AuthMethod.TOKEN, token.groups) for token in tokens}

    async def identify(self, presented: CallerCredentials) -> Identity | None:
        """By the token alone."""
        return self._known.get(_hashed(presented.secret))


def _hashed(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
