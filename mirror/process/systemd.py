"""Notices to systemd about this process, if systemd asked for them (sd_notify(3)): one datagram for each change.

    starting ── every worker answers ──> READY=1 ── SIGTERM ──> STOPPING=1
                                            └── WATCHDOG=1, several times in each WatchdogSec

Sending never waits, and errors are ignored: whether the mirror serves does not depend on systemd's socket.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress


class Systemd:
    """Notifies systemd about the process that it started. `period` is the watchdog period in seconds, 0: no
    watchdog.
    """

    def __init__(self, address: str = "", period: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        # an address in the abstract namespace is written with @
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._period = period
        self._clock = clock
        self._sent_at = float("-inf")

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Systemd:
        """The notifier that `NOTIFY_SOCKET` and `WATCHDOG_USEC` in the environment ask for."""
        period = environment.get("WATCHDOG_USEC", "")
        return cls(environment.get("NOTIFY_SOCKET", ""), int(period) / 1e6 if period.isdecimal() else 0.0)

    def ready(self) -> None:
        """Every worker answers."""
        self._notify("READY=1")

    def stopping(self) -> None:
        """The process is ending, which may take some time."""
        self._notify("STOPPING=1")

    def alive(self) -> None:
        """Feed the watchdog. To be called often: a notice is sent once in each quarter of the period."""
        if self._period and self._clock() - self._sent_at >= self._period / 4:
            self._sent_at = self._clock()
            self._notify("WATCHDOG=1")

    def _notify(self, state: str) -> None:
        if not self._address:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto(state.encode(), self._address)
