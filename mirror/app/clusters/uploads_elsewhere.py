"""Builds what takes upload requests to the replica that has the session, and what answers those of other replicas."""

from __future__ import annotations

from mirror.app.clustering import Cluster
from mirror.app.repositories import Repositories
from mirror.app.storage import Storage
from mirror.server.peers.passed_uploads import PassedUploads, PeerAccess, UploadVerb
from mirror.server.registry.receiving import Receiver


def open_uploads_elsewhere(
    cluster: Cluster, storage: Storage, repositories: Repositories, receiver: Receiver
) -> PassedUploads | None:
    """What passes requests on; the verb is added to the internal listener. None if nothing is hosted."""
    if storage.bucket is None:
        return None
    cluster.add(UploadVerb(repositories.router.member, receiver).verb())
    tls_name = cluster.settings.tls_name if cluster.client_tls is not None else None
    peers = PeerAccess(cluster.client, cluster.signer, cluster.health, cluster.client_tls, tls_name)
    return PassedUploads(cluster.sessions, peers, storage.bucket.threads.passed)
