"""A file with credentials that somebody else rotates, and the password in one.

    read ── look(): another time, size or inode, or `again` ──┬─ understood ──> what it says now
                                                              └─ gone, or refused by `understand` ──> what it said last,
                                                                 told once for each reason, and looked at again

The path is followed at each look, so a file that another one is renamed over is noticed, and so are the links of a
mounted Kubernetes Secret. Reading blocks for as long as a small file takes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from mirror import telemetry
from mirror.errors import ConfigError
from mirror.upstream.credentials.source import Credentials, LoginState

__all__ = ["PasswordFile", "RotatedFile", "secret_in"]

T = TypeVar("T")


def secret_in(content: bytes) -> str:
    """A secret that is the whole content of a file, without the white space around it. Raises `ValueError`, which
    quotes nothing of it.
    """
    try:
        text = content.decode().strip()
    except UnicodeDecodeError:
        # without the cause, which holds the content
        raise ValueError("not text") from None
    if not text:
        raise ValueError("empty")
    return text


class RotatedFile(Generic[T]):
    """What a file says; see the drawing above.

    `understand` raises `ValueError` for what is no such file; its text is shown and may quote nothing secret. `said`
    counts until the file was read first; `reading` is told how that goes.
    """

    def __init__(
        self, path: Path, understand: Callable[[bytes], T], said: T, *, upstream: str, reading: LoginState
    ) -> None:
        self._path = path
        self._understand = understand
        self._said = said
        self._upstream = upstream
        self._reading = reading
        self._seen: tuple[int, ...] | None = None

    def read(self) -> T:
        """Read it now. Raises `ConfigError` where the file is missing or unusable."""
        try:
            self._said = self._understand(self._path.read_bytes())
        except OSError as error:
            raise ConfigError([f"{self._path}: {error.strerror}"]) from error
        except ValueError as error:
            raise ConfigError([f"{self._path}: {error}"]) from error
        return self._said

    def look(self, *, again: bool = False) -> T:
        """What it says, or said last; `again`: read it even if it seems to be the same."""
        try:
            status = os.stat(self._path)
            seen = (status.st_mtime_ns, status.st_size, status.st_ino)
            if again or seen != self._seen:
                self.read()
                self._seen = seen
        except OSError as error:
            self._note(f"{self._path}: {error.strerror}; what it said last is used on")
        except ConfigError as error:
            self._note(f"{error}; what it said last is used on")
        else:
            if self._reading.reason is not None:
                self._reading.worked()
        return self._said

    def _note(self, reason: str) -> None:
        if reason != self._reading.reason:
            telemetry.log.warning("credentials stay as they were", upstream=self._upstream, reason=reason)
        self._reading.failed(reason)


class PasswordFile:
    """See `CredentialSource`: a user with the password that stands in a file. `password` is what the file said when the
    configuration was read.
    """

    def __init__(self, path: Path, username: str, password: str, *, upstream: str) -> None:
        self._reading = LoginState("password_file")
        self._username = username
        self._file = RotatedFile(path, secret_in, password, upstream=upstream, reading=self._reading)

    @property
    def issuing(self) -> LoginState:
        """Of the file, which is looked at anew."""
        self._file.look()
        return self._reading

    async def credentials(self) -> Credentials | None:
        """With what the file says now."""
        return Credentials(self._username, self._file.look())

    async def reject(self, credentials: Credentials) -> None:
        """Read the file again: what was written over it in the same moment, with the same size, looks the same."""
        self._file.look(again=True)

    async def aclose(self) -> None:
        """Nothing to let go of."""
