"""Tokens of our own, which `/token` issues to authenticated callers (distribution's token specification).

    identity ── issue() ──> token, encrypted, good for minutes ── identify() ──> the same identity
                                      └── another key, altered, or expired ──> None

A token is encrypted as a whole (Fernet: AES-CBC with an HMAC, versioned and dated), because it may contain a caller's
credentials for an upstream. Any process that has the key can read it, so the mirror stores no tokens. The key is a file
beside the store, created at the first start; replicas share one by configuration. If the file holds several keys, the
first one encrypts and all decrypt, so that a key can be changed without invalidating tokens.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from mirror.errors import ConfigError, reason_of
from mirror.oci.authorization import CallerCredentials
from mirror.oci.reference import Repo
from mirror.policy.access_rules import Action, AuthMethod, Identity, Scope

#: Distinguishes our tokens from all others.
_PREFIX: Final = "mirror-1."
#: Seconds by which the clocks of replicas may differ.
_SLACK: Final = 60


def is_issued(presented: CallerCredentials) -> bool:
    """True if this looks like a token of ours, valid or not. Such a token must not be shown to anybody else."""
    return presented.secret.startswith(_PREFIX)


def read_keys(path: Path, *, create: bool) -> MultiFernet:
    """Blocking. The keys in a file, one a line. With `create` a missing file is created (0600); if several processes
    do so at once, all use the same file.

    Raises `ConfigError`.
    """
    if create and not path.exists():
        _create(path)
    return check_keys(path)


def check_keys(path: Path) -> MultiFernet:
    """Blocking. The keys in a file, one a line. Raises `ConfigError`."""
    try:
        lines = path.read_text().split()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"access.token_key_file: {path}: {reason_of(error)}"]) from error
    try:
        return MultiFernet([Fernet(line) for line in lines])
    except ValueError as error:
        raise ConfigError(
            [f"access.token_key_file: {path}: not one or more keys of 32 bytes in URL-safe base64"]
        ) from error


def _create(path: Path) -> None:
    """Create the file whole or not at all, and never replace that of another process. Raises `ConfigError`."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, Fernet.generate_key() + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        with suppress(FileExistsError):
            os.link(temporary, path)
    except OSError as error:
        raise ConfigError([f"access.token_key_file: {path} cannot be created: {reason_of(error)}"]) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


class IssuedTokens:
    """Issues tokens, and is the `Authenticator` for them. `lifetime` is in seconds."""

    def __init__(self, keys: MultiFernet, *, lifetime: float, now: Callable[[], float] = time.time) -> None:
        self.lifetime = lifetime
        self._keys = keys
        self._now = now

    def issue(self, identity: Identity, instead: CallerCredentials | None = None) -> str:
        """A token that carries this identity, with its scope. A token that is issued `instead` of another one of ours
        is not valid for longer than that one.
        """
        content: dict[str, Any] = {
            "name": identity.name,
            "method": identity.method.value,
            "groups": sorted(identity.groups),
            "proof": identity.proof,
        }
        if identity.issuer:
            content |= {"issuer": identity.issuer, "claims": sorted(identity.claims)}
        if identity.own is not None:
            content["own"] = [identity.own.username, identity.own.password]
        if identity.scope is not None:
            grants = sorted((repo.registry, repo.name, action.value) for repo, action in identity.scope.grants)
            content["scope"] = {"grants": grants, "catalog": identity.scope.catalog}
        left = self.seconds_left(instead) if instead is not None else None
        began = self._now() if left is None else self._now() - (self.lifetime - left)
        encrypted = self._keys.encrypt_at_time(json.dumps(content).encode(), int(began))
        return _PREFIX + encrypted.decode()

    async def identify(self, presented: CallerCredentials) -> Identity | None:
        """The identity in a token that has not expired, sent as a bearer or as a password; None for anything else."""
        opened = self._open(presented)
        if opened is None:
            return None
        content, seconds_left = opened
        if not 0 < seconds_left <= self.lifetime + _SLACK:
            return None
        return replace(_read(json.loads(content)), holds_for=seconds_left)

    def seconds_left(self, presented: CallerCredentials) -> float | None:
        """Seconds for which a token of ours is still valid; None if it is not one of ours."""
        opened = self._open(presented)
        return None if opened is None else max(0.0, min(opened[1], self.lifetime))

    def _open(self, presented: CallerCredentials) -> tuple[bytes, float] | None:
        secret = presented.secret
        if not secret.startswith(_PREFIX):
            return None
        token = secret.removeprefix(_PREFIX).encode()
        try:
            # the decoder skips characters that are not base64: without this check one token would have many spellings
            if base64.urlsafe_b64encode(base64.urlsafe_b64decode(token)) != token:
                return None
            content = self._keys.decrypt(token)
            return content, self._keys.extract_timestamp(token) + self.lifetime - self._now()
        except (InvalidToken, binascii.Error):
            return None


def _read(content: Any) -> Identity:
    """The identity in the decrypted content of a token, which we wrote ourselves."""
    own = CallerCredentials(*content["own"]) if "own" in content else None
    scope = None
    if "scope" in content:
        grants = frozenset((Repo(*where), Action(action)) for *where, action in content["scope"]["grants"])
        scope = Scope(grants, content["scope"]["catalog"])
    method = AuthMethod(content["method"])
    # a robot's list is not part of the token: until it has been looked up, nothing is allowed
    only = () if method is AuthMethod.ROBOT else None
    groups, proof = frozenset(content["groups"]), content.get("proof", "")
    issuer, claims = content.get("issuer", ""), frozenset((name, value) for name, value in content.get("claims", ()))
    return Identity(content["name"], method, groups, own, scope, proof, issuer=issuer, claims=claims, only=only)
