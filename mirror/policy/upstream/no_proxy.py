"""The hosts that the environment variable NO_PROXY exempts from the proxy."""

from __future__ import annotations

import ipaddress


def bypasses_proxy(no_proxy: str, host: str, port: int) -> bool:
    """Whether `no_proxy`, a list of entries separated by commas, includes the host.

    `*` matches every host. A name matches itself and all names below it, with or without a leading dot. An address
    matches itself, a network (`10.0.0.0/8`) the addresses in it. `:port` limits an entry to that port.
    """
    return any(_covers(entry.strip().lower(), host.lower(), port) for entry in no_proxy.split(","))


def _covers(entry: str, host: str, port: int) -> bool:
    if entry == "*":
        return True
    name, colon, wanted = entry.rpartition(":")
    if colon and wanted.isdigit() and (":" not in name or name.endswith("]")):
        if int(wanted) != port:
            return False
        entry = name
    entry = entry.strip("[]").removeprefix("*").lstrip(".")
    if not entry:
        return False
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == entry or host.endswith(f".{entry}")
    try:
        return address in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return False
