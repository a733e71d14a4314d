"""Which hosts are reached without a proxy, by the environment variable NO_PROXY."""

from __future__ import annotations

import ipaddress

__all__ = ["is_spared"]


def is_spared(no_proxy: str, host: str, port: int) -> bool:
    """Whether `no_proxy` names the host: entries separated by commas.

    `*` is everything; a name stands for itself and what lies below it, with or without a dot before it; an address for
    itself, a network (`10.0.0.0/8`) for the addresses in it; `:port` narrows an entry down.
    """
    return any(_names(entry.strip().lower(), host.lower(), port) for entry in no_proxy.split(","))


def _names(entry: str, host: str, port: int) -> bool:
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
