"""How the replicas of a cluster are named: by the addresses of their internal listeners."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

_ADDRESS: Final = re.compile(
    r"(?P<dns>dns\+)?(?P<scheme>https?)://(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):(?P<port>[0-9]{1,5})/?"
)


@dataclass(frozen=True, slots=True)
class MemberAddress:
    """`http://10.0.0.1:5001`, in one spelling for each address: members are compared as text. `host` is lower case and
    has no brackets. `lookup`: a name whose addresses are the members, `dns+http://…`.
    """

    scheme: str
    host: str
    port: int
    lookup: bool = False

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'dns+' if self.lookup else ''}{self.scheme}://{host}:{self.port}"

    @property
    def is_tls(self) -> bool:
        """True if members speak TLS with one another."""
        return self.scheme == "https"

    @property
    def has_ip(self) -> bool:
        """True if the host is an IP address, and no name."""
        return _ip(self.host) is not None

    def at(self, ips: Iterable[str], own: MemberAddress) -> list[str]:
        """The members at these IP addresses, sorted, each in its one spelling. Only those of the same version of IP as
        this replica's `own`: a pod that has an address of each is one member, and knows itself by one.
        """
        hosts = {_spelled(ip) for ip in ips if (":" in ip) == (":" in own.host)}
        return sorted(str(MemberAddress(self.scheme, host, self.port)) for host in hosts)


def parse_member(text: str) -> MemberAddress:
    """Parses `http://host:port`, `https://host:port`, and the same after `dns+`. Raises `ValueError`."""
    found = _ADDRESS.fullmatch(text)
    if found is None or not 0 < int(found["port"]) < 65536:
        raise ValueError(f"{text[:120]!r} is not an address such as http://10.0.0.1:5001 or https://[fd00::1]:5001")
    host = found["host"]
    if host.startswith("[") and _ip(host.strip("[]")) is None:
        raise ValueError(f"{text[:120]!r}: {host} is not an IPv6 address")
    return MemberAddress(found["scheme"], _spelled(host.strip("[]")), int(found["port"]), found["dns"] is not None)


def _spelled(host: str) -> str:
    ip = _ip(host)
    return str(ip) if ip is not None else host.lower()


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
