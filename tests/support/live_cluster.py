"""Replicas of a cluster on the test's own event loop, each with a store and an internal listener of its own.

The pauses after which a replica doubts another one pass only when a test lets them (`LiveReplica.time`).
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from aiohttp import web

from mirror.app.clustering import Cluster
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.peers.used_nonces import UsedNonces
from mirror.policy.cluster.ownership import by_weight
from mirror.server.registry.handler import RegistryServer
from tests.support.live_mirror import LiveMirror, live_mirror
from tests.support.stepped_time import SteppedTime


class LiveReplica:
    """One replica. Its internal listener can end, and be frozen."""

    def __init__(self, mirror: LiveMirror, address: str, upstream: str) -> None:
        self.mirror = mirror
        self.address = address
        self.time = SteppedTime()
        self._goes_on = asyncio.Event()
        self._goes_on.set()
        reads = mirror.app.shared.peers(Repo(upstream, "any"))
        assert reads is not None
        reads.sleep, reads.clock = self.time.sleep, self.time
        self._nonces = UsedNonces.made()
        self._front = self.cluster.front(self._nonces)
        self._server = RegistryServer(self._answer)
        self._listening: asyncio.Server | None = None

    @property
    def cluster(self) -> Cluster:
        """What it knows of the others."""
        found = self.mirror.app.storage.cluster
        assert found is not None
        return found

    @property
    def followers(self) -> int:
        """How many clients and replicas follow its flights."""
        return sum(flight.followers for flight in self.mirror.app.shared.flights.active())

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        await self._goes_on.wait()
        return await self._front(request)

    async def doubts(self, other: LiveReplica) -> None:
        """Let time pass until this replica leaves another one alone that does not answer."""
        await self.time.go_on(lambda: not self.cluster.members.is_up(other.address))

    def freeze(self) -> None:
        """Accept requests of other replicas, and answer none."""
        self._goes_on.clear()

    async def listen(self, listening: socket.socket) -> None:
        """Answer other replicas."""
        self._listening = await asyncio.get_running_loop().create_server(self._server, sock=listening)

    async def end(self) -> None:
        """Break off what others get from here, and listen no more. Repeatable."""
        self._goes_on.set()
        if self._listening is not None:
            self._listening.close()
            self._listening = None
            for connection in list(self._server.connections):
                if connection.transport is not None:
                    # the transport's own end would leave open what the kernel sends from a file
                    with (
                        suppress(OSError),
                        socket.socket(fileno=os.dup(connection.transport.get_extra_info("socket").fileno())) as direct,
                    ):
                        direct.shutdown(socket.SHUT_RDWR)
            await self._server.shutdown(1.0)
            self._nonces.close()


@asynccontextmanager
async def live_cluster(
    folder: Path, upstreams: Mapping[str, str | Mapping[str, Any]], count: int = 3, **settings: Any
) -> AsyncIterator[Sequence[LiveReplica]]:
    """`upstreams` and `settings` as for `live_mirror`."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = [f"http://127.0.0.1:{listening.getsockname()[1]}" for listening in sockets]
    secret = folder / "cluster-secret"
    secret.write_text("one secret of at least 32 characters\n")
    replicas: list[LiveReplica] = []
    async with AsyncExitStack() as stack:
        for number, (address, listening) in enumerate(zip(addresses, sockets, strict=True)):
            cluster = {"members": addresses, "address": address, "secret_file": secret}
            root = folder / f"replica-{number}"
            mirror = await stack.enter_async_context(live_mirror(root, upstreams, cluster=cluster, **settings))
            replica = LiveReplica(mirror, address, next(iter(upstreams)))
            stack.push_async_callback(replica.end)
            await replica.listen(listening)
            replicas.append(replica)
        yield replicas


def in_order(replicas: Sequence[LiveReplica], registry: str, digest: Digest) -> list[LiveReplica]:
    """The owner of a blob first."""
    by_address = {replica.address: replica for replica in replicas}
    return [by_address[member] for member in by_weight(registry, digest, by_address)]
