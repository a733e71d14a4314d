"""Docker's `config.json`: the credentials in it, or the helper program that it names.

The order for one registry: its program under `credHelpers`, its entry under `auths`, the program under `credsStore`.
(Docker itself prefers `credsStore` to `auths`, which it empties in that case. Here a secret written into the file takes
precedence over a program that may not be installed.)
"""

from __future__ import annotations

import base64
import binascii
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mirror.upstream.credentials.credential_helpers import CredentialHelper
from mirror.upstream.credentials.renewal import Renewed
from mirror.upstream.credentials.secret_files import RotatedFile
from mirror.upstream.credentials.source import NO_USER, Credentials, CredentialSource, GivenCredentials, LoginState

#: The key that docker writes for Docker Hub, which is not the host name of its registry.
_HUB_KEY: Final = "https://index.docker.io/v1/"
_HUB_HOSTS: Final = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})


@dataclass(frozen=True, slots=True)
class _Helper:
    """The name of the helper to run, and the server to pass to it."""

    name: str
    server: str


class DockerConfig:
    """The entry for one registry in a docker `config.json`, read again when the file changes.

    `registries` are the names under which the entry may be found, best first: host names, with or without port. While
    the file is missing or cannot be understood, its last good content is used (before the first: anonymous). A file
    without an entry means anonymous. `environment` is passed to helpers instead of the process's own environment.
    `clock` counts seconds; `now` gives epoch seconds.
    """

    def __init__(
        self,
        path: Path,
        registries: Iterable[str],
        *,
        upstream: str = "",
        environment: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        names = tuple(registries)
        self._upstream = upstream or names[0]
        self._environment = environment
        self._clock = clock
        self._entry: Credentials | _Helper | None = None
        self._now = now
        self._reading = LoginState("docker_config", now)
        self._source: CredentialSource = GivenCredentials(issuing=self._reading)
        self._file = RotatedFile(
            path, lambda content: _parse(content, names), None, upstream=self._upstream, reading=self._reading
        )

    @property
    def issuing(self) -> LoginState:
        """The state of reading the file if that fails, else the state of its helper. Looks at the file first."""
        self._use(self._file.look())
        return self._source.issuing if self._reading.reason is None else self._reading

    def check(self) -> None:
        """Read the file now. Raises `ConfigError` if it is missing or unusable."""
        self._use(self._file.read())

    async def credentials(self) -> Credentials | None:
        """The credentials that are in the file now, or those of the helper that it names."""
        self._use(self._file.look())
        return await self._source.credentials()

    async def reject(self, credentials: Credentials) -> None:
        """Drop the helper's credentials, so that it is asked again. Credentials in the file itself stay in use."""
        await self._source.reject(credentials)

    async def aclose(self) -> None:
        """Close the present source. Repeatable."""
        await self._source.aclose()

    def _use(self, entry: Credentials | _Helper | None) -> None:
        if entry != self._entry:
            self._entry, self._source = entry, self._open(entry)

    def _open(self, entry: Credentials | _Helper | None) -> CredentialSource:
        if not isinstance(entry, _Helper):
            return GivenCredentials(entry, self._reading)
        helper = CredentialHelper(self._upstream, entry.name, entry.server, environment=self._environment)
        return Renewed(self._upstream, helper.program, helper.obtain, clock=self._clock, now=self._now)


class _BadHelper(ValueError):
    """A value that is no helper name. The message does not quote it: it may be a secret put there by mistake."""


def _parse(content: bytes, registries: tuple[str, ...]) -> Credentials | _Helper | None:
    try:
        return _find(json.loads(content), registries)
    except _BadHelper:
        raise
    except (ValueError, TypeError) as error:
        # without the text of the cause, which may quote the file
        raise ValueError("not a docker config.json") from error


def _find(config: Any, registries: tuple[str, ...]) -> Credentials | _Helper | None:
    if not isinstance(config, dict):
        raise ValueError("not an object")
    helpers, auths = (_object(config, name) for name in ("credHelpers", "auths"))
    keys = [(registry, key) for registry in registries for key in _keys(registry)]
    for _, key in keys:
        if helper := helpers.get(key):
            return _Helper(_checked(helper, "credHelpers"), key)
    for _, key in keys:
        entry = auths.get(key)
        if isinstance(entry, dict) and (credentials := _read(entry)):
            return credentials
    if store := config.get("credsStore"):
        registry = registries[0]
        return _Helper(_checked(store, "credsStore"), _HUB_KEY if registry in _HUB_HOSTS else registry)
    return None


def _object(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = config.get(name)
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"{name} is not an object")
    return value or {}


def _checked(name: object, setting: str) -> str:
    if not isinstance(name, str) or not CredentialHelper.is_name(name):
        raise _BadHelper(f"{setting} names a helper with other characters than letters, digits, - _ and .")
    return name


def _keys(registry: str) -> Iterator[str]:
    """The keys under which docker, podman and old tools write the entry of a registry."""
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
    if username == NO_USER:
        return Credentials(identity_token=token or password) if token or password else None
    if not username and not token:
        return None
    return Credentials(username, password, token)
