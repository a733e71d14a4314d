"""The file with the secret that the replicas share, which is exchanged while they run.

read ── another time, size or inode, seen within a second ──┬─ good ──────────────────> the new secrets
                                                            └─ missing, or not good ──> the last ones; logged once
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from mirror import telemetry
from mirror.errors import ConfigError, reason_of
from mirror.policy.cluster.peer_secrets import parse_secrets

#: Seconds between two looks at the file.
_PAUSE: Final = 1.0


class ClusterSecrets:
    """The secrets; the first signs, and each is accepted. May be asked from any thread."""

    def __init__(self, path: Path, *, now: Callable[[], float] = time.monotonic) -> None:
        """Reads the file. `now` is a monotonic clock in seconds. Raises `ConfigError`."""
        self._path = path
        self._now = now
        self._lock = threading.Lock()
        self._reason = ""
        self._looked = now()
        try:
            self._seen, self._secrets = self._read()
        except OSError as error:
            raise ConfigError([f"cluster.secret_file: {path}: {reason_of(error)}"]) from error
        except ConfigError as error:
            raise ConfigError([f"cluster.secret_file: {path}: {mistake}" for mistake in error.mistakes]) from error

    def __repr__(self) -> str:
        return f"<ClusterSecrets {self._path}: {len(self._secrets)}>"

    def all(self) -> tuple[bytes, ...]:
        """The secrets as they are in the file, or were when it was last good."""
        with self._lock:
            if self._now() - self._looked >= _PAUSE:
                self._looked = self._now()
                self._look()
            return self._secrets

    def _look(self) -> None:
        try:
            if _version(self._path.stat()) == self._seen:
                return
            self._seen, self._secrets = self._read()
        except OSError as error:
            reason = reason_of(error)
        except ConfigError as error:
            reason = "; ".join(error.mistakes)
        else:
            self._reason = ""
            telemetry.log.info("cluster secret read again", path=str(self._path), secrets=len(self._secrets))
            return
        if reason != self._reason:
            self._reason = reason
            telemetry.log.warning("cluster secret unreadable", path=str(self._path), reason=reason)

    def _read(self) -> tuple[tuple[int, ...], tuple[bytes, ...]]:
        with self._path.open("rb") as file:
            return _version(os.fstat(file.fileno())), parse_secrets(file.read())


def _version(status: os.stat_result) -> tuple[int, ...]:
    return status.st_mtime_ns, status.st_size, status.st_ino
