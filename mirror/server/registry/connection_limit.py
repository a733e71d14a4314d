"""Which connections are kept open: requests have to come in time, answers to be taken in time, and one address has only
so many.

    accepted ──┬── its address has as many as it may ────────────────────────────────> dropped ("many")
               └── open ── first byte of a request ── its head is not whole in time ─> dropped ("slow")
                    ^             └── whole ── answer ── nothing of it is taken ─────> dropped ("stalled")
                    │                            └── taken ──┐
                    └────────────────────────────────────────┘

The time of a head runs from its first byte and is not begun anew by later ones: a client that drips a byte now and then
(slowloris) gets no more of it than others. That of a TLS handshake (handshake.py) runs in the same way. A connection
without any byte is closed when it has been idle too long. writing.py says how answers wait for their clients.
"""

from __future__ import annotations

import ipaddress
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from mirror import telemetry

__all__ = ["ConnectionLimiter", "client_key"]

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

#: Seconds between two log lines about this; metrics count each.
_QUIET: Final = 60.0
#: Bits of an IPv6 address that one client has no choice of: it may use any address of its subnet (RFC 4291, 2.5.4).
_SUBNET: Final = 64


def client_key(peer: object, unlimited: Sequence[Network]) -> str | None:
    """What one client's connections are counted under, from the socket's name of it; None: they are not counted.

    Those of an IPv6 subnet count together. A unix socket's clients are not told apart, so they are not counted.
    """
    if not isinstance(peer, tuple) or not peer:
        return None
    try:
        address: Address = ipaddress.ip_address(str(peer[0]).partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    if any(address in network for network in unlimited):
        return None
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((int(address) >> _SUBNET << _SUBNET, _SUBNET)))
    return str(address)


class ConnectionLimiter:
    """Of one worker. `head` and `stall` are in seconds; `most` connections of one client, 0: as many as it likes."""

    def __init__(
        self,
        *,
        head: float = 20.0,
        stall: float = 300.0,
        most: int = 0,
        unlimited: Sequence[Network] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.head = head
        self.stall = stall
        self._most = most
        self._unlimited = unlimited
        self._clock = clock
        self._open: Counter[str] = Counter()
        self._untold: Counter[str] = Counter()
        self._told = float("-inf")

    def enter(self, peer: object) -> tuple[bool, str | None]:
        """Whether this connection may stay, and what to give to `leave` at its end."""
        key = client_key(peer, self._unlimited) if self._most else None
        if key is not None:
            if self._open[key] >= self._most:
                self.dropped("many", peer)
                return False, None
            self._open[key] += 1
        telemetry.CONNECTIONS.inc()
        return True, key

    def leave(self, key: str | None) -> None:
        """A connection that stayed has ended."""
        telemetry.CONNECTIONS.dec()
        if key is None:
            return
        self._open[key] -= 1
        if not self._open[key]:
            del self._open[key]

    def dropped(self, reason: str, peer: object) -> None:
        """A connection is ended for this reason: count it, and log it once a minute."""
        telemetry.CONNECTIONS_DROPPED.labels(reason).inc()
        self._untold[reason] += 1
        now = self._clock()
        if now - self._told >= _QUIET:
            self._told = now
            client = str(peer[0]) if isinstance(peer, tuple) and peer else "unix"
            telemetry.log.warning("connections dropped", **self._untold, client=client)
            self._untold.clear()
