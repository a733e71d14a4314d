"""Opens the exchange of cached blobs between the replicas of a cluster. Without one, nothing of it is even loaded."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import Final

from mirror.app.clustering import Cluster
from mirror.config import Config, routing_table
from mirror.fills.peer_source import PeerReads
from mirror.oci.reference import Repo
from mirror.peers.peer_blobs import HttpPeerBlobs
from mirror.ports import OrderedPurges
from mirror.repository.router import Router
from mirror.server.peers.blobs import PeerBlobAnswers
from mirror.server.registry.sending import Sender

#: Threads that wait for the first bytes of other replicas, which may wait for their upstream. They are not those that
#: fill blobs: two replicas, all of whose threads waited for each other, would wait for long.
_OPENING_THREADS: Final = 256


def open_exchange(
    config: Config, cluster: Cluster, purges: OrderedPurges | None, stack: AsyncExitStack
) -> Callable[[Repo], PeerReads | None]:
    """Returns how the blobs of a repository are read from other replicas; None if its upstream checks each caller's
    credentials: they never leave this replica, so its blobs are neither asked for nor given. `stack` ends the threads
    that wait.
    """
    opening = ThreadPoolExecutor(_OPENING_THREADS, "peer")
    stack.callback(opening.shutdown, wait=False, cancel_futures=True)
    tls_name = config.cluster.tls_name if cluster.client_tls is not None else None
    blobs = HttpPeerBlobs(cluster.signer, cluster.client, opening, tls=cluster.client_tls, tls_name=tls_name)
    reads = PeerReads(blobs, cluster.members, cluster.health, purges=purges)
    table = routing_table(config)
    apart = frozenset(upstream.name for upstream in config.upstream if upstream.access == "verify")

    def peers(repo: Repo) -> PeerReads | None:
        found = table.registry(repo.registry)
        return None if found is None or found[1].name in apart else reads

    return peers


def answer_blobs(cluster: Cluster, router: Router, sender: Sender) -> None:
    """Lets other replicas have the blobs of this one."""
    cluster.add(PeerBlobAnswers(router.for_peer, sender).verb())
