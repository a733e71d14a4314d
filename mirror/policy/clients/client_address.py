"""Which address a client has, if its requests pass proxies. A client can write anything into a request's headers: only
what proxies that are trusted have added to it counts.
"""

from __future__ import annotations

from collections.abc import Sequence

from mirror.policy.clients.networks import Networks, read_address


def client_address(peer: str, forwarded: Sequence[str], trusted: Networks) -> str | None:
    """The address of the client; None if a trusted proxy does not say it.

    `peer` is what the connection comes from. `forwarded` are the values of all `X-Forwarded-For` headers, in order:
    each proxy adds the address that it was called from at the end. So the list is read from its end, for as long as
    what has written an entry is trusted.
    """
    address = peer
    hops = [hop for value in forwarded for hop in value.split(",")] if peer in trusted else []
    if peer in trusted and not hops:
        return None
    while hops and address in trusted:
        hop = read_address(hops.pop())
        if hop is None:
            return None
        address = hop
    return address
