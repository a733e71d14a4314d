"""Other replicas that do what a test says: `PeerBlobs`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from mirror.errors import UpstreamError
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.ports import Body
from tests.support.hangar import GatedUpstream


class ScriptedPeer:
    """One replica. It answers at once, gives its blob, and says that it has all of it, unless a test changes that."""

    def __init__(self) -> None:
        self.content = GatedUpstream(is_open=True)
        #: Set when the head, and then the first byte, may come.
        self.head, self.first = asyncio.Event(), asyncio.Event()
        self.head.set()
        self.first.set()
        self.refusal: UpstreamError | None = None
        #: What it says about how far it is; None: it does not answer that.
        self.says: Callable[[], int | None] | None = lambda: len(self.content.content)
        self.looks = 0


@dataclass(frozen=True, slots=True)
class PeerAsked:
    """One request for a blob."""

    member: str
    repo: Repo
    digest: Digest
    start: int
    size: int | None
    hops: int


class ScriptedPeers:
    """See `PeerBlobs`; each member is made when it is first named."""

    def __init__(self) -> None:
        self._peers: dict[str, ScriptedPeer] = {}
        self.asked: list[PeerAsked] = []

    def __getitem__(self, member: str) -> ScriptedPeer:
        return self._peers.setdefault(member, ScriptedPeer())

    @asynccontextmanager
    async def open(
        self,
        member: str,
        repo: Repo,
        digest: Digest,
        start: int,
        stop: int | None = None,
        *,
        size: int | None,
        hops: int,
        heard: Callable[[], None],
        part: bool = False,
    ) -> AsyncIterator[Body]:
        self.asked.append(PeerAsked(member, repo, digest, start, size, hops))
        peer = self[member]
        if peer.refusal:
            raise peer.refusal
        await peer.head.wait()
        heard()
        await peer.first.wait()
        async with peer.content.pull(start, stop) as body:
            yield body

    async def offset(self, member: str, repo: Repo, digest: Digest) -> int | None:
        peer = self[member]
        peer.looks += 1
        if peer.says is None:
            await asyncio.Event().wait()
            raise AssertionError("cancelled before")
        return peer.says()
