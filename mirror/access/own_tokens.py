"""Tokens of our own, which `/token` gives to those who have said who they are (distribution's token specification).

    identity ── issue() ──> token, encrypted, good for minutes ── identify() ──> the same identity
                                      └── another key, altered, or its time over ──> nobody

A token is encrypted as a whole (Fernet: AES-CBC with an HMAC, versioned and dated), so what is inside, which may be
somebody's credentials for an upstream, is nobody's business, and any process that has the key can read it: nothing is
remembered on our side. The key is a file beside the store, made at the first start; replicas share one by
configuration. Of several keys in it the first one issues and all are accepted, so that a key can be changed without
sending anybody away.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from mirror.errors import ConfigError
from mirror.oci.authorization import CallerCredentials
from mirror.policy.access import AuthMethod, Identity

__all__ = ["IssuedTokens", "check_keys", "is_issued", "read_keys"]

#: Tells our tokens from all others at a look.
_PREFIX: Final = "mirror-1."
#: Seconds by which the clocks of replicas may differ.
_SLACK: Final = 60


def is_issued(presented: CallerCredentials) -> bool:
    """Whether this looks like a token of ours, good or not: then it is for nobody else's eyes."""
    return presented.secret.startswith(_PREFIX)


def read_keys(path: Path, *, make: bool) -> MultiFernet:
    """The keys in a file, one a line. Blocking. With `make` a missing file is made (0600), by one of several processes.

    Raises `ConfigError`.
    """
    if make and not path.exists():
        _make(path)
    return check_keys(path)


def check_keys(path: Path) -> MultiFernet:
    """Blocking. Raises `ConfigError`."""
    try:
        lines = path.read_text().split()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise ConfigError([f"access.token_key_file: {path}: {reason}"]) from error
    try:
        return MultiFernet([Fernet(line) for line in lines])
    except ValueError as error:
        raise ConfigError(
            [f"access.token_key_file: {path}: not one or more keys of 32 bytes in URL-safe base64"]
        ) from error


def _make(path: Path) -> None:
    """Whole or not at all, and never over another process's."""
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
        raise ConfigError([f"access.token_key_file: {path} cannot be made: {error.strerror}"]) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


class IssuedTokens:
    """Issues, and is an `Authenticator` for what it issued. `lifetime` is in seconds."""

    def __init__(self, keys: MultiFernet, *, lifetime: float, now: Callable[[], float] = time.time) -> None:
        self.lifetime = lifetime
        self._keys = keys
        self._now = now

    def issue(self, identity: Identity) -> str:
        """A token that says who this is."""
        inside: dict[str, Any] = {
            "name": identity.name,
            "means": identity.means.value,
            "groups": sorted(identity.groups),
        }
        if identity.own is not None:
            inside["own"] = [identity.own.username, identity.own.password]
        encrypted = self._keys.encrypt_at_time(json.dumps(inside).encode(), int(self._now()))
        return _PREFIX + encrypted.decode()

    async def identify(self, presented: CallerCredentials) -> Identity | None:
        """By a token that is still good; as a bearer, or as a password."""
        opened = self._open(presented)
        if opened is None:
            return None
        inside, left = opened
        return _read(json.loads(inside)) if 0 < left <= self.lifetime + _SLACK else None

    def left(self, presented: CallerCredentials) -> float | None:
        """Seconds that a token of ours is still good; None for what is none."""
        opened = self._open(presented)
        return None if opened is None else max(0.0, min(opened[1], self.lifetime))

    def _open(self, presented: CallerCredentials) -> tuple[bytes, float] | None:
        secret = presented.secret
        if not secret.startswith(_PREFIX):
            return None
        token = secret.removeprefix(_PREFIX).encode()
        try:
            # what is no letter of base64 is passed over in decoding: one token would have any number of spellings
            if base64.urlsafe_b64encode(base64.urlsafe_b64decode(token)) != token:
                return None
            inside = self._keys.decrypt(token)
            return inside, self._keys.extract_timestamp(token) + self.lifetime - self._now()
        except (InvalidToken, binascii.Error):
            return None


def _read(inside: Any) -> Identity:
    """What we have encrypted ourselves."""
    own = CallerCredentials(*inside["own"]) if "own" in inside else None
    return Identity(inside["name"], AuthMethod(inside["means"]), frozenset(inside["groups"]), own)
