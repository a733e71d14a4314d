"""Names to addresses, for both kinds of connection, by the rules of `mirror.policy.upstream.url_bounds`.

The rules are applied to what a name resolved to, at the moment of dialling, so that a name which changes its address
after it was checked gains nothing.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Final

from mirror.policy.upstream.url_bounds import UrlBounds, parse_address

__all__ = ["AddressRefused", "check_literal", "dial", "refused"]


class AddressRefused(OSError):
    """A name leads to an address that its upstream has no business with."""


_ADVICE: Final = "if the registry is in a private network, set private = true"


def refused(host: str) -> AddressRefused:
    """The error for a name whose every address is forbidden. It says what to do, and no address."""
    return AddressRefused(f"{host} leads to a private or reserved address; {_ADVICE}")


def check_literal(bounds: UrlBounds, host: str) -> None:
    """Raises `AddressRefused` for a host that is a forbidden address itself: aiohttp asks no resolver about those."""
    if parse_address(host) is not None and not bounds.permits(host, host):
        raise AddressRefused(f"{host} is a private or reserved address, which this upstream may not lead to; {_ADVICE}")


def dial(
    bounds: UrlBounds, host: str, port: int, timeout: float, clock: Callable[[], float] = time.monotonic
) -> socket.socket:
    """Blocking: a connected TCP socket, within `timeout` seconds after the name is resolved.

    Addresses are tried in the resolver's order; each gets its share of the time, so that one that does not answer
    leaves some for the next. How long resolving takes is up to the system's resolver (`resolv.conf`): a blocking call
    to it cannot be ended, so callers on the event loop bound their own waiting. Raises `OSError` (`TimeoutError`,
    `socket.gaierror`, `AddressRefused`).
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    permitted = [one for one in found if bounds.permits(host, str(one[4][0]))]
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
