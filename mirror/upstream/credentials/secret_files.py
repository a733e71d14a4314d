"""Files with credentials that are rotated from outside, and the password in such a file.

    read ── look(): another time, size or inode, or `again` ──┬──── parsed ──> the new content
                                                              └─ missing, or refused by `parse` ──> the last good
                                                                 content; each new reason is logged once; read again
                                                                 at the next look()

Each look() resolves the path again. So it notices a file that is replaced by a rename, and the changed links of a
mounted Kubernetes Secret. Reading blocks, but the files are small.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from mirror import telemetry
from mirror.errors import ConfigError, reason_of
from mirror.upstream.credentials.source import Credentials, LoginState

T = TypeVar("T")


def secret_in(content: bytes) -> str:
    """The secret in a file that contains nothing else, without the white space around it.

    Raises `ValueError` if the content is empty or not text; the message does not quote it.
    """
    try:
        text = content.decode().strip()
    except UnicodeDecodeError:
        # without the cause, which contains the secret
        raise ValueError("not text") from None
    if not text:
        raise ValueError("empty")
    return text


class RotatedFile(Generic[T]):
    """The parsed content of a file; see the drawing above.

    `parse` parses the content. It raises `ValueError` for content that is not valid; the message is shown, so it
    must not quote secrets. `content` is the value until the file is read for the first time. `reading` records whether
    reading works.
    """

    def __init__(
        self, path: Path, parse: Callable[[bytes], T], content: T, *, upstream: str, reading: LoginState
    ) -> None:
        self._path = path
        self._parse = parse
        self._content = content
        self._upstream = upstream
        self._reading = reading
        self._seen: tuple[int, ...] | None = None

    def read(self) -> T:
        """Read the file now. Raises `ConfigError` if it is missing or unusable."""
        try:
            self._content = self._parse(self._path.read_bytes())
        except OSError as error:
            raise ConfigError([f"{self._path}: {reason_of(error)}"]) from error
        except ValueError as error:
            raise ConfigError([f"{self._path}: {error}"]) from error
        return self._content

    def look(self, *, again: bool = False) -> T:
        """The present content, or the last good one. With `again`, read the file even if it looks unchanged."""
        try:
            status = os.stat(self._path)
            seen = (status.st_mtime_ns, status.st_size, status.st_ino)
            if again or seen != self._seen:
                self.read()
                self._seen = seen
        except OSError as error:
            self._note(f"{self._path}: {reason_of(error)}; its last content stays in use")
        except ConfigError as error:
            self._note(f"{error}; its last content stays in use")
        else:
            if self._reading.reason is not None:
                self._reading.worked()
        return self._content

    def _note(self, reason: str) -> None:
        if reason != self._reading.reason:
            telemetry.log.warning("credentials not reloaded", upstream=self._upstream, reason=reason)
        self._reading.failed(reason)


class PasswordFile:
    """A `CredentialSource`: a user name, and the password in a file. `password` is the one that the file contained when
    the configuration was read.
    """

    def __init__(self, path: Path, username: str, password: str, *, upstream: str) -> None:
        self._reading = LoginState("password_file")
        self._username = username
        self._file = RotatedFile(path, secret_in, password, upstream=upstream, reading=self._reading)

    @property
    def issuing(self) -> LoginState:
        """The state of reading the file, which is checked for changes first."""
        self._file.look()
        return self._reading

    async def credentials(self) -> Credentials | None:
        """The user name with the password that is in the file now."""
        return Credentials(self._username, self._file.look())

    async def reject(self, credentials: Credentials) -> None:
        """Read the file again: a rewrite within the same clock tick, of the same size, looks like no change."""
        self._file.look(again=True)

    async def aclose(self) -> None:
        """Do nothing: the file is not kept open."""
