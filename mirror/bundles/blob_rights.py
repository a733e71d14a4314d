"""Which blobs the repositories of a store may serve, for commands that carry images to other sites and take them in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from mirror.errors import RecordDamaged
from mirror.graph.blob_places import BlobPlaces
from mirror.intake.grants import Grants
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.hosted_records import LinkState
from mirror.ports import BlobLinks


def blob_rights(places: BlobPlaces, grants: Grants, links: BlobLinks) -> Callable[[Repo, Digest], bool]:
    """A function that returns whether a repository may serve a blob now: a hosted one by its link, a cached one by its
    grant. That the bytes are here proves nothing. It blocks, raises `StoreError`, and is called from threads, while the
    caller's loop runs.
    """
    loop = asyncio.get_running_loop()

    def may_serve(repo: Repo, digest: Digest) -> bool:
        if not places.is_hosted(repo):
            return asyncio.run_coroutine_threadsafe(grants.size(repo, digest), loop).result() is not None
        try:
            link = links.link(repo, digest)
        except RecordDamaged:
            return False
        return link is not None and link.record.state is LinkState.LINKED

    return may_serve
