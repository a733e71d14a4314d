"""Asks every other replica whether it answers this one, for `mirror check --online`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mirror.peers.members import ClusterMembers
from mirror.peers.notice_text import write_notice
from mirror.peers.peer_client import PeerClient, PeerSilent
from mirror.peers.peer_notices import TARGET
from mirror.policy.cluster.peer_signatures import PeerRefused
from mirror.ports.peers import Notice

#: Seconds for an answer: more than a request between replicas gets, so that a slow one is not called silent.
_PATIENCE: Final = 5.0
_NETWORK: Final = (
    "look whether it runs, and whether the network between the replicas lets its port through (in Kubernetes: the "
    "policy mirror-internal)"
)
_ALONE: Final = "look whether the name in cluster.members resolves to all replicas, or all are listed"
_SAME: Final = "compare cluster.secret_file, cluster.members and cluster.name of both replicas"
_CLOCKS: Final = "set the clock of the machine that is wrong"


@dataclass(frozen=True, slots=True)
class MemberCheck:
    """The result for one member: `detail` describes it, `advice` says what to do if `ok` is False."""

    member: str
    ok: bool
    detail: str
    advice: str = ""


async def check_members(members: ClusterMembers, client: PeerClient) -> Sequence[MemberCheck]:
    """Asks all members but this one at the same time, with a notice of nothing; the results are sorted by address. That
    there is no other one is a failure, too: nobody runs a cluster of one.
    """
    if not members.peers():
        return [MemberCheck(members.own, False, "knows no other replica", _ALONE)]
    return await asyncio.gather(*(_check(client, peer) for peer in members.peers()))


async def _check(client: PeerClient, member: str) -> MemberCheck:
    try:
        answer = await client.call(member, "notice", "POST", TARGET, body=write_notice(Notice()), patience=_PATIENCE)
    except PeerSilent as error:
        return MemberCheck(member, False, str(error), _NETWORK)
    except PeerRefused as error:
        return MemberCheck(member, False, str(error), _SAME)
    if answer.status != 204:
        return MemberCheck(member, False, f"answers {answer.status}", "look at its log, and compare the versions")
    if ahead := client.ahead(member):
        return MemberCheck(member, False, f"answers, but the clocks differ by {abs(ahead):.0f} s", _CLOCKS)
    return MemberCheck(member, True, f"answers, version {answer.headers.get('mirror-version', 'unknown')}")
