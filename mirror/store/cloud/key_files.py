"""The keys of S3, which may be in files that are rotated from outside."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mirror import telemetry

if TYPE_CHECKING:
    from obstore.store import S3Credential

#: Files are read again after so many seconds, and at once if the store refuses the keys.
_LIFE: Final = 60.0


@dataclass(frozen=True, slots=True)
class S3Keys:
    """An access key with its secret, and the token of temporary ones."""

    access_key: str
    secret_key: str = field(repr=False)
    token: str | None = field(default=None, repr=False)


class KeyFiles:
    """Keys of which some are in files. If a file cannot be read, its last content stays in use; the log says so once.

    Called by obstore, in the thread that uses a store.
    """

    def __init__(
        self, keys: S3Keys, files: dict[str, Path], *, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        """`keys` as they were read with the configuration; `files` by the names of the fields of `S3Keys`."""
        self._keys = keys
        self._files = files
        self._now = now
        self._lock = threading.Lock()
        self._unread = ""

    def __repr__(self) -> str:
        return f"<KeyFiles {sorted(self._files)}>"

    def __call__(self) -> S3Credential:
        keys = self.keys()
        expires = self._now() + timedelta(seconds=_LIFE) if self._files else None
        return {
            "access_key_id": keys.access_key,
            "secret_access_key": keys.secret_key,
            "token": keys.token,
            "expires_at": expires,
        }

    def keys(self) -> S3Keys:
        """The present keys, read from the files now."""
        if not self._files:
            return self._keys
        with self._lock:
            try:
                content = {name: _content(path) for name, path in self._files.items()}
            except (OSError, ValueError) as error:
                self._note(str(error))
            else:
                self._unread = ""
                present = {
                    "access_key": self._keys.access_key,
                    "secret_key": self._keys.secret_key,
                    "token": self._keys.token,
                }
                # pairs of files are not replaced together: keys that do not match are refused, and read again then
                self._keys = S3Keys(**{**present, **content})  # type: ignore[arg-type]
            return self._keys

    def _note(self, reason: str) -> None:
        if reason != self._unread:
            self._unread = reason
            telemetry.log.warning("credentials not reloaded", upstream="bucket", reason=reason)


def _content(path: Path) -> str:
    try:
        text = path.read_bytes().decode().strip()
    except UnicodeDecodeError:
        # without the cause, which contains the secret
        raise ValueError(f"{path}: not text") from None
    if not text:
        raise ValueError(f"{path}: empty")
    return text
