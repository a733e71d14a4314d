"""Builds what purges images."""

from __future__ import annotations

from collections.abc import Collection

from mirror.app.storage import Storage, pin_rules
from mirror.config import Config
from mirror.eviction.purge import Purge
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.repository.shared import Shared
from mirror.store.local.json_records import JsonRecords
from mirror.store.local.purge_notices import Purges


def make_purge(config: Config, storage: Storage, shelf: Shared | None = None) -> Purge:
    """A purge that drops an image from the store, and from the memory of every process that uses the store.

    `shelf` is the memory of this process, if it has one; other processes read the purge notices.
    """
    purges = Purges(JsonRecords(storage.layout, "purges"))

    def forget(repo: Repo, tags: Collection[str], digests: Collection[Digest]) -> None:
        if shelf is not None:
            shelf.forget(repo, tags, digests)
        purges.tell(repo, tags, digests)

    return Purge(
        storage.store,
        storage.catalog,
        storage.pins,
        pin_rules(config),
        storage.freezes,
        storage.index,
        storage.eviction.evictor,
        forget=forget,
    )
