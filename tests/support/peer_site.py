"""A replica that gives cached blobs to another one, over a real socket, in this process."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from mirror.errors import BlobUnknown, UpstreamNotFound
from mirror.fills.flights import Flights
from mirror.fills.sources import Pull
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.oci.span import Span
from mirror.peers.members import ClusterMembers
from mirror.peers.peer_blobs import HttpPeerBlobs
from mirror.peers.peer_client import PeerClient
from mirror.peers.peer_health import PeerHealth
from mirror.peers.peer_signer import PeerSigner
from mirror.peers.secret_file import ClusterSecrets
from mirror.peers.used_nonces import UsedNonces
from mirror.policy.send_limit import may_send
from mirror.ports import Body
from mirror.repository.answers import BlobContent, GrowingContent, Outcome, no_stream
from mirror.server.peers.blobs import PeerBlobAnswers
from mirror.server.peers.peer_front import PeerFront
from mirror.server.registry.handler import RegistryServer
from mirror.server.registry.sending import Sender
from mirror.store.local.blobs import LocalStore
from mirror.store.local.layout import Layout
from tests.support.hangar import GatedUpstream, Hangar

#: The address of the replica that asks; nothing listens there.
ASKING = "http://127.0.0.1:1"
REPO = Repo("docker.io", "library/app")


class GivenBlobs:
    """See `BlobsForPeers`: whatever its upstream has."""

    def __init__(self, flights: Flights, store: LocalStore, executor: ThreadPoolExecutor, pull: Pull) -> None:
        self._flights = flights
        self._store = store
        self._executor = executor
        self._pull = pull
        #: The size that a manifest says, for flights that begin here.
        self.size: int | None = None
        self.waiting_for = ""
        #: How `Router.for_peer` was asked for this repository.
        self.found: list[tuple[int, tuple[str, ...]]] = []

    async def blob(self, digest: Digest) -> BlobContent:
        try:
            flight = await self._flights.join(digest, self._pull, upstream="docker.io", size=self.size)
        except UpstreamNotFound as error:
            raise BlobUnknown("upstream does not have it") from error
        return GrowingContent(flight, no_stream(digest, "docker.io", self._executor, "this is a test"), Outcome.MISS)

    async def part_for_peer(self, digest: Digest, part: Span, size: int, by: str) -> None:
        """Every part is sent in the ordinary way."""

    async def offset(self, digest: Digest) -> int | None:
        growth = self._store.filling(digest, "docker.io")
        if growth is not None:
            return may_send(growth.offset, growth.size, verified=growth.verified)
        try:
            return self._store.stat(digest).size
        except BlobUnknown:
            return None

    def waits_for(self, digest: Digest) -> str:
        return self.waiting_for


class PeerSite:
    """The replica that gives, and `blobs`, by which the other one asks it."""

    def __init__(self, folder: Path, executor: ThreadPoolExecutor) -> None:
        self.upstream = GatedUpstream(is_open=True)
        #: Awaited before upstream answers.
        self.before: Callable[[], Awaitable[object]] | None = None
        self.executor = executor
        self.store = LocalStore(Layout(folder / "giving"))
        self.hangar = Hangar(self.store, executor)
        self.given = GivenBlobs(self.hangar.flights, self.store, executor, self._pull)
        secret = folder / "secret"
        secret.write_text("a secret of at least 32 characters\n")
        self.secrets = ClusterSecrets(secret)
        self.member = ""
        self.blobs: HttpPeerBlobs

    @asynccontextmanager
    async def _pull(self, start: int, stop: int | None = None) -> AsyncIterator[Body]:
        if self.before:
            await self.before()
        async with self.upstream.pull(start, stop) as body:
            yield body

    def find(self, repo: Repo, *, hops: int, besides: Collection[str]) -> GivenBlobs | None:
        """See `Router.for_peer`."""
        self.given.found.append((hops, tuple(besides)))
        return self.given if repo == REPO else None

    @asynccontextmanager
    async def open(
        self, *, server_tls: ssl.SSLContext | None = None, tls: ssl.SSLContext | None = None, name: str | None = None
    ) -> AsyncIterator[PeerSite]:
        """Listen, and close everything at the end."""
        verb = PeerBlobAnswers(self.find, Sender(self.executor, stall=60.0)).verb()
        listening = socket.create_server(("127.0.0.1", 0))
        self.member = f"{'https' if tls else 'http'}://127.0.0.1:{listening.getsockname()[1]}"
        members = ClusterMembers(self.member, [ASKING], PeerHealth())
        nonces = UsedNonces.made()
        front = PeerFront({verb.name: verb}, members, self.secrets, nonces, cluster="test", version="1", tls_name=name)
        server = RegistryServer(front)
        accepting = server if server_tls is None else partial(server.over_tls, server_tls)
        accepted = await asyncio.get_running_loop().create_server(accepting, sock=listening)
        signer = PeerSigner("test", ASKING, self.secrets)
        client = PeerClient(signer, PeerHealth(), tls=tls, tls_name=name)
        self.blobs = HttpPeerBlobs(signer, client, self.executor, tls=tls, tls_name=name)
        try:
            yield self
        finally:
            self.upstream.gate.set()
            await client.aclose()
            await self.hangar.flights.aclose()
            accepted.close()
            await server.shutdown(1.0)
            nonces.close()
