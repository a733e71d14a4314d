"""Limits on client connections: requests must arrive in time, answers must be read in time, and one address may have
only a limited number of connections.

    accepted ──┬── its address has the most it may have ─────────────────────────────> dropped ("many")
               └── open ── first byte of a request ── its head is not whole in time ─> dropped ("slow")
                    ^             └── whole ── answer ── client reads nothing of it ─> dropped ("stalled")
                    │                            └── read ───┐
                    └────────────────────────────────────────┘

The time for a head starts at its first byte and is not extended by later bytes: a client that sends a byte now and then
(slowloris) gets no more time than others. The time for a TLS handshake (handshake.py) runs in the same way. An idle
connection without any byte is closed after a while. writing.py describes how answers wait for their clients.
"""

from __future__ import annotations

import ipaddress
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from mirror import telemetry

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

#: Seconds between two log lines about dropped connections; metrics count every one.
_QUIET: Final = 60.0
#: Prefix length of an IPv6 subnet: one client may use any address of its subnet (RFC 4291, 2.5.4).
_SUBNET: Final = 64


def client_key(peer: object, unlimited: Sequence[Network], subnet: int = _SUBNET) -> str | None:
    """The key under which a client's connections are counted, from the socket's peer name; None: they are not counted.

    Addresses of one IPv6 subnet, with a prefix of `subnet` bits, share a key. Clients of a unix socket cannot be told
    apart, so they are not counted.
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
        return str(ipaddress.IPv6Network((address, subnet), strict=False))
    return str(address)


class ConnectionLimiter:
    """The limits of one worker. `head` and `stall` are seconds; `most` is the number of connections per client, 0: no
    limit; clients of one IPv6 subnet, with a prefix of `subnet` bits, count as one.
    """

    def __init__(
        self,
        *,
        head: float = 20.0,
        stall: float = 300.0,
        most: int = 0,
        unlimited: Sequence[Network] = (),
        subnet: int = _SUBNET,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.head = head
        self.stall = stall
        self._most = most
        self._unlimited = unlimited
        self._subnet = subnet
        self._clock = clock
        self._open: Counter[str] = Counter()
        self._unlogged: Counter[str] = Counter()
        self._logged_at = float("-inf")

    def __repr__(self) -> str:
        return f"<ConnectionLimiter {self._open.total()} connections of {len(self._open)} clients, most {self._most}>"

    def enter(self, peer: object) -> tuple[bool, str | None]:
        """True if this connection may stay, and the key to pass to `leave` when it ends."""
        key = client_key(peer, self._unlimited, self._subnet) if self._most else None
        if key is not None:
            if self._open[key] >= self._most:
                self.dropped("many", peer)
                return False, None
            self._open[key] += 1
        telemetry.CONNECTIONS.inc()
        return True, key

    def leave(self, key: str | None) -> None:
        """A connection that was allowed to stay has ended."""
        telemetry.CONNECTIONS.dec()
        if key is None:
            return
        self._open[key] -= 1
        if not self._open[key]:
            del self._open[key]

    def dropped(self, reason: str, peer: object) -> None:
        """Count a connection that is dropped for this reason; log at most one line a minute."""
        telemetry.CONNECTIONS_DROPPED.labels(reason).inc()
        self._unlogged[reason] += 1
        now = self._clock()
        if now - self._logged_at >= _QUIET:
            self._logged_at = now
            client = str(peer[0]) if isinstance(peer, tuple) and peer else "unix"
            telemetry.log.warning("connections dropped", **self._unlogged, client=client)
            self._unlogged.clear()
