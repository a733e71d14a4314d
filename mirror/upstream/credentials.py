"""Where the secrets for upstreams come from: plain arguments or docker's `config.json`."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from mirror.errors import ConfigError

__all__ = ["CredentialSource", "Credentials", "DockerConfig", "GivenCredentials"]

#: The key that docker writes for Docker Hub, whatever its registry's host is called.
_HUB_KEY: Final = "https://index.docker.io/v1/"
_HUB_HOSTS: Final = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})

#: Username that stands beside a token in `auth`.
_NO_USER: Final = "<token>"


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user name with a password, or an identity token (an OAuth2 refresh token). Never shown by `repr` or `str`."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)

    @property
    def basic(self) -> str:
        """The value of an `Authorization` header (RFC 7617)."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()

    @property
    def fingerprint(self) -> str:
        """Tells credentials apart without giving them away: 16 hex digits."""
        parts = "\0".join((self.username, self.password, self.identity_token))
        return hashlib.sha256(parts.encode()).hexdigest()[:16]


class CredentialSource(Protocol):
    """Asked anew before each token exchange, so that changed credentials take effect without a restart."""

    def credentials(self) -> Credentials | None:
        """None: anonymous."""


@dataclass(frozen=True, slots=True)
class GivenCredentials:
    """Always the same ones."""

    given: Credentials | None = None

    def credentials(self) -> Credentials | None:
        """What was given."""
        return self.given


class DockerConfig:
    """The entry for one registry in a docker `config.json`, read again when the file changes.

    `registries` are the names under which it may stand, best first: host names, with or without port. A file that is
    missing, has no such entry, or is being rewritten badly counts as what it last was (at first: anonymous).
    """

    def __init__(self, path: Path, registries: Iterable[str]) -> None:
        self._path = path
        self._registries = tuple(registries)
        self._seen: tuple[int, ...] | None = None
        self._found: Credentials | None = None

    def check(self) -> None:
        """Read it now. Raises `ConfigError` where the file is missing or unusable."""
        try:
            self._found = _find(json.loads(self._path.read_bytes()), self._registries)
        except OSError as error:
            raise ConfigError([f"{self._path}: {error.strerror}"]) from error
        except (ValueError, TypeError) as error:
            # without the cause's text: it may quote what is in the file
            raise ConfigError([f"{self._path}: not a docker config.json"]) from error

    def credentials(self) -> Credentials | None:
        """What the file says now."""
        try:
            status = os.stat(self._path)
        except OSError:
            return self._found
        seen = (status.st_mtime_ns, status.st_size, status.st_ino)
        if seen != self._seen:
            try:
                self.check()
            except ConfigError:
                return self._found
            self._seen = seen
        return self._found


def _find(config: Any, registries: Iterable[str]) -> Credentials | None:
    auths = config.get("auths") if isinstance(config, dict) else None
    if not isinstance(auths, dict):
        if isinstance(config, dict) and auths is None:
            return None
        raise ValueError("auths is not an object")
    for registry in registries:
        for key in _keys(registry):
            entry = auths.get(key)
            if isinstance(entry, dict) and (found := _read(entry)):
                return found
    return None


def _keys(registry: str) -> Iterator[str]:
    """The spellings under which docker, podman and old tools write an entry."""
    if registry in _HUB_HOSTS:
        yield _HUB_KEY
        yield "docker.io"
    for scheme in ("", "https://", "http://"):
        for path in ("", "/", "/v1/", "/v2/", "/v1", "/v2"):
            yield f"{scheme}{registry}{path}"


def _read(entry: Mapping[str, Any]) -> Credentials | None:
    def text(name: str) -> str:
        value = entry.get(name)
        return value if isinstance(value, str) else ""

    username, password = text("username"), text("password")
    if encoded := text("auth"):
        try:
            username, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError) as error:
            raise ValueError("auth is not base64") from error
        password = password.rstrip("\0")
    token = text("identitytoken")
    if username == _NO_USER:
        return Credentials(identity_token=token or password) if token or password else None
    if not username and not token:
        return None
    return Credentials(username, password, token)
