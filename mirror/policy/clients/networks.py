"""Sets of networks, as settings name them: addresses, networks such as `10.0.0.0/8`, and `unix`."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Final

#: The peer of a connection over a unix socket.
UNIX: Final = "unix"


class Networks:
    """A set of networks. `address in networks` tells whether an address belongs to one of them."""

    def __init__(self, networks: Iterable[str] = ()) -> None:
        """Raises `ValueError` for anything but an address, a network without host bits, and `unix`."""
        written = list(networks)
        self._unix = UNIX in written
        self._networks = [ipaddress.ip_network(each) for each in written if each != UNIX]

    def __repr__(self) -> str:
        return f"<Networks {[*map(str, self._networks), *([UNIX] if self._unix else [])]}>"

    def __bool__(self) -> bool:
        return self._unix or bool(self._networks)

    def __contains__(self, address: str) -> bool:
        """What is no address belongs to no network. An IPv4 address that is written as an IPv6 one (RFC 4291, 2.5.5.2)
        belongs to the networks of IPv4.
        """
        if address == UNIX:
            return self._unix
        if not self._networks or (parsed := _parse(address)) is None:
            return False
        return any(parsed in network for network in self._networks)


def read_address(text: str) -> str | None:
    """The address in a field of `X-Forwarded-For`: with or without port, IPv6 with or without brackets; None if there
    is none.
    """
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    parsed = _parse(text)
    return None if parsed is None else str(parsed)


def _parse(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped
    return address
