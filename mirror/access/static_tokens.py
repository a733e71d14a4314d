"""Tokens written in the configuration, for machines that cannot log in in any other way."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from mirror.oci.authorization import CallerCredentials
from mirror.policy.access_rules import AuthMethod, Identity


@dataclass(frozen=True, slots=True)
class StaticToken:
    """A configured token; `name` identifies it in rules and logs."""

    name: str
    secret: str = field(repr=False)
    groups: frozenset[str] = frozenset()


class StaticTokens:
    """Authenticates by configured tokens; see `Authenticator` and `Membership` in `mirror.ports`. A token may come as a
    bearer, or as the password of any user name.
    """

    def __init__(self, tokens: Iterable[StaticToken]) -> None:
        # looked up by hash, so that the time of a look-up reveals nothing about the token
        hashed = [(_hashed(token.secret), token) for token in tokens]
        self._identities = {
            of: Identity(token.name, AuthMethod.TOKEN, token.groups, proof=of.hex()[:32]) for of, token in hashed
        }
        self._by_proof = {identity.proof: identity for identity in self._identities.values()}

    async def identify(self, presented: CallerCredentials) -> Identity | None:
        """The identity of this token, or None. The user name is ignored."""
        return self._identities.get(_hashed(presented.secret))

    async def current(self, identity: Identity) -> Identity | None:
        """See `Membership.current`."""
        present = self._by_proof.get(identity.proof)
        return present if present is not None and present.name == identity.name else None

    def stamp(self) -> object:
        """See `Membership.stamp`: the tokens do not change."""
        return None


def _hashed(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
