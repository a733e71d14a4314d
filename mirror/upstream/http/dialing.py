"""Connects to hosts by the address rules of `mirror.policy.upstream.url_bounds`, which both HTTP clients apply.

The rules are applied to the resolved addresses at the moment of dialling. So a name cannot pass a check and then
resolve to a forbidden address.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable
from typing import Final

from mirror.policy.upstream.url_bounds import UrlBounds, parse_address


class AddressRefused(OSError):
    """A host has an address that its upstream may not lead to."""


#: How OpenSSL calls an answer that is no TLS.
_NOT_TLS: Final = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG"})
_ADVICE: Final = "if the registry is in a private network, set private_network = true"


def refused(host: str) -> AddressRefused:
    """The error for a name whose addresses are all forbidden. It says what to do, and names no address."""
    return AddressRefused(f"{host} leads to a private or reserved address; {_ADVICE}")


def no_tls(error: ssl.SSLError) -> str:
    """Why there is no TLS connection, in words. `errno` of such an error is a number of OpenSSL, which `os.strerror`
    takes for one of the kernel: «Operation not permitted».
    """
    # Python sets it only for errors of OpenSSL
    found = getattr(error, "reason", None)
    if found in _NOT_TLS:
        return "the other side does not speak TLS; should the URL begin with http://?"
    reason = (found or "").replace("_", " ").lower()
    return f"TLS failed: {reason or 'the connection ended'}"


def check_literal(bounds: UrlBounds, host: str) -> None:
    """Raises `AddressRefused` if the host is itself a forbidden address: aiohttp passes no address to the resolver."""
    if parse_address(host) is not None and not bounds.permits(host, host):
        raise AddressRefused(f"{host} is a private or reserved address, which this upstream may not lead to; {_ADVICE}")


def dial(
    bounds: UrlBounds, host: str, port: int, timeout: float, clock: Callable[[], float] = time.monotonic
) -> socket.socket:
    """A connected TCP socket, within `timeout` seconds after the name is resolved. Blocking.

    Addresses are tried in the resolver's order. Each gets its share of the time, so an address that does not answer
    leaves time for the next. The system's resolver (`resolv.conf`) decides how long resolving takes: a blocking call to
    it cannot be ended, so callers on the event loop limit their own waiting. Raises `OSError` (`TimeoutError`,
    `socket.gaierror`, `AddressRefused`).
    """
    resolved = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    permitted = [entry for entry in resolved if bounds.permits(host, str(entry[4][0]))]
    if not permitted:
        raise refused(host)
    deadline = clock() + timeout
    failure: OSError = TimeoutError(f"{host} did not answer in {timeout:g} s")
    for position, (family, kind, protocol, _, address) in enumerate(permitted):
        remaining = deadline - clock()
        if remaining <= 0:
            break
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(remaining / (len(permitted) - position))
            connection.connect(address)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            connection.close()
            failure = error
        else:
            return connection
    raise failure
