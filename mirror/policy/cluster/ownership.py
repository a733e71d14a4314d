"""Which replica fetches a cached blob for all, by rendezvous hashing: each member has a weight for each blob, and the
member with the highest one is the blob's owner. A member that joins or leaves changes the owner of its own share alone.

    members, highest weight first     owner ── second ── third ── …
    whom a replica asks               only members before itself, so that nobody waits for somebody who waits for it

The weights do not depend on who else is a member. So replicas that see different members may ask different ones, and
one more of them may ask upstream; but they never wait for one another in a circle.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable
from typing import Final

from mirror.oci.digest import Digest

#: The most replicas that may wait for one answer, one for the other.
MOST_HOPS: Final = 2
#: The most members that are asked for one blob, one after the other.
MOST_ASKED: Final = 2


def by_weight(registry: str, digest: Digest, members: Iterable[str]) -> list[str]:
    """The members in the order in which they fetch the blob of a registry: the first is its owner."""
    return sorted(set(members), key=lambda member: (_weight(member, registry, digest), member), reverse=True)


def to_ask(
    own: str, registry: str, digest: Digest, members: Collection[str], is_up: Callable[[str], bool]
) -> list[str]:
    """The members that the replica `own` asks for a blob, in this order, before it asks its upstream: those before
    itself. Empty if it is the owner. Members that are not up stay in the list, for whoever finds out whether they are
    back, and do not count for `MOST_ASKED`.
    """
    asked: list[str] = []
    up = 0
    for member in by_weight(registry, digest, {*members, own}):
        if member == own or up == MOST_ASKED:
            break
        asked.append(member)
        up += is_up(member)
    return asked


def _weight(member: str, registry: str, digest: Digest) -> bytes:
    return hashlib.blake2b(f"{member}\n{registry}\n{digest}".encode(), digest_size=16).digest()
