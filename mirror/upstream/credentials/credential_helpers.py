"""Docker's credential helpers: programs `docker-credential-NAME` that return the credentials for a registry.

    docker-credential-gcloud get  <── the server, on standard input
                                  ──> {"ServerURL": …, "Username": …, "Secret": …} on standard output
                                  ──> exit status 1 and «credentials not found in native keychain»: no credentials

Source: the protocol in docker/docker-credential-helpers, README. `gcloud auth configure-docker` installs such a helper.
The output of a helper may contain secrets, even if the helper fails: stdout and stderr are never shown or logged.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from mirror.errors import reason_of
from mirror.oci.strict_json import read_json
from mirror.upstream.credentials.renewal import Issued
from mirror.upstream.credentials.source import NO_USER, Credentials, CredentialsUnavailable

_NAME: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
_LARGEST: Final = 64 * 1024
#: Seconds to wait for the end of the output of a helper that was killed.
_DRAIN: Final = 1.0
_NOT_FOUND: Final = b"credentials not found in native keychain"
#: Seconds. A helper does not report when its tokens expire, and some expire within minutes: its answer is used for
#: `_USABLE`, then renewed. While the helper fails, its last answer is used for up to `_LASTS`; upstream refuses it once
#: it has expired. `_NONE_FOR`: how long the answer that there are no credentials is used.
_USABLE: Final = 300.0
_LASTS: Final = 3600.0
_NONE_FOR: Final = 60.0
_TIMEOUT: Final = 30.0

#: The environment variables that are passed to a helper: those that locate its configuration and its network access.
#: The others may contain the mirror's settings, and with them the secrets of other registries.
_PASSED: Final = frozenset(
    (
        *("HOME", "USER", "LOGNAME", "PATH", "LANG", "TMPDIR", "DBUS_SESSION_BUS_ADDRESS"),
        *("GNUPGHOME", "PASSWORD_STORE_DIR", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"),
        *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
    )
)
_PASSED_PREFIXES: Final = ("AWS_", "AZURE_", "CLOUDSDK_", "GOOGLE_", "LC_", "XDG_")


class CredentialHelper:
    """One helper for one server. `timeout` is in seconds; `environment` replaces the process's own environment."""

    def __init__(
        self,
        upstream: str,
        name: str,
        server: str,
        *,
        timeout: float = _TIMEOUT,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Raises `ValueError` if `name` is not the name of a credential helper (`is_name`)."""
        if not self.is_name(name):
            raise ValueError("not the name of a credential helper")
        self._upstream = upstream
        self._server = server
        self._timeout = timeout
        self.program = f"docker-credential-{name}"
        self._environment = environment

    @staticmethod
    def is_name(name: object) -> bool:
        """True for a string of letters, digits, `-`, `_` and `.` only: no path separators or shell syntax."""
        return isinstance(name, str) and _NAME.fullmatch(name) is not None

    async def obtain(self) -> Issued:
        """Run the helper. Raises `CredentialsUnavailable`."""
        environment = _passed_environment(os.environ if self._environment is None else self._environment)
        path = shutil.which(self.program, path=environment.get("PATH", os.defpath))
        if path is None:
            raise self._failed("is not on the PATH of the mirror; install it there")
        try:
            process = await asyncio.create_subprocess_exec(
                path,
                "get",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env=environment,
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            raise self._failed(f"cannot be run: {reason_of(error)}") from error
        try:
            async with asyncio.timeout(self._timeout):
                output = await _converse(process, self._server.encode())
        except TimeoutError as error:
            raise self._failed(f"gave no answer within {self._timeout:g} s; {self._by_hand}") from error
        finally:
            await _end(process)
        if len(output) > _LARGEST:
            raise self._failed(f"gave an answer that contains no credentials; {self._by_hand}")
        return self._read(process.returncode or 0, output)

    def _read(self, code: int, output: bytes) -> Issued:
        if code and output.strip().lower() == _NOT_FOUND:
            return Issued(None, _NONE_FOR, _NONE_FOR)
        if code:
            raise self._failed(f"failed with exit status {code}; {self._by_hand}")
        try:
            answer: Any = read_json(output)
        except ValueError:
            answer = None
        username, secret = (answer.get("Username"), answer.get("Secret")) if isinstance(answer, dict) else (None, None)
        if not isinstance(username, str) or not isinstance(secret, str):
            raise self._failed(f"gave an answer that contains no credentials; {self._by_hand}")
        if not secret:
            return Issued(None, _NONE_FOR, _NONE_FOR)
        credentials = Credentials(identity_token=secret) if username == NO_USER else Credentials(username, secret)
        return Issued(credentials, _USABLE, _LASTS)

    @property
    def _by_hand(self) -> str:
        return f"as the mirror's user, try: echo {self._server} | {self.program} get"

    def _failed(self, why: str) -> CredentialsUnavailable:
        return CredentialsUnavailable(f"the credential helper {self.program} {why}", upstream=self._upstream)


def _passed_environment(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name in _PASSED or name.startswith(_PASSED_PREFIXES)}


async def _converse(process: asyncio.subprocess.Process, server: bytes) -> bytes:
    """The helper's answer. Reading stops soon after `_LARGEST` bytes, so the caller can tell that it is too long."""
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("no pipes")
    with suppress(ConnectionError):  # the helper may answer without reading its input
        process.stdin.write(server)
        await process.stdin.drain()
    process.stdin.close()
    output = bytearray()
    while len(output) <= _LARGEST and (piece := await process.stdout.read(_LARGEST)):
        output += piece
    if len(output) <= _LARGEST:
        await process.wait()
    return bytes(output)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill the helper and the processes that it started, if it still runs."""
    if process.returncode is None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    if process.stdout is not None:
        # an unread rest would keep the pipe open for good; another process may hold its other end
        with suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN):
                while await process.stdout.read(_LARGEST):
                    pass
