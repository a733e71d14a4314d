"""What systemd is told of this process, where it has asked to be (sd_notify(3)): a datagram for each change.

    starting ── every worker answers ──> READY=1 ── SIGTERM ──> STOPPING=1
                                            └── WATCHDOG=1, several times in each WatchdogSec

Nothing is waited for, and nothing follows from a socket that is gone: systemd's ear is no reason to serve or not.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

__all__ = ["Systemd"]


class Systemd:
    """Of the process that systemd has started. `period` is in seconds, 0: it does not watch."""

    def __init__(self, address: str = "", period: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        # a name in the abstract namespace is written with @
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._period = period
        self._clock = clock
        self._said = float("-inf")

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Systemd:
        """By `NOTIFY_SOCKET` and `WATCHDOG_USEC`."""
        period = environment.get("WATCHDOG_USEC", "")
        return cls(environment.get("NOTIFY_SOCKET", ""), int(period) / 1e6 if period.isdecimal() else 0.0)

    def ready(self) -> None:
        """Every worker answers."""
        self._tell("READY=1")

    def stopping(self) -> None:
        """It ends, and may need some time for it."""
        self._tell("STOPPING=1")

    def alive(self) -> None:
        """To be called often: every fourth part of the period one is passed on."""
        if self._period and self._clock() - self._said >= self._period / 4:
            self._said = self._clock()
            self._tell("WATCHDOG=1")

    def _tell(self, state: str) -> None:
        if not self._address:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
            one.setblocking(False)
            one.sendto(state.encode(), self._address)
