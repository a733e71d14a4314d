"""Builds what images are imported into."""

from __future__ import annotations

import time

from mirror.app.routes import age_rule
from mirror.app.storage import Storage
from mirror.bundles.blob_import import HostedTarget
from mirror.bundles.importing import ImportTarget, IndexBatch
from mirror.config import Config
from mirror.intake.grants import Grants
from mirror.intake.intake import Intake
from mirror.intake.tag_history import TagHistories


def import_target(config: Config, storage: Storage, hosted: HostedTarget | None = None) -> ImportTarget:
    """The store of this configuration, as an import uses it. `hosted` takes images of hosted
    repositories."""
    store, catalog = storage.store, storage.catalog
    histories = TagHistories(catalog, storage.freezes)
    index = IndexBatch(storage.index, storage.eviction.write_behind.touch, time.time)
    return ImportTarget(
        store=store,
        catalog=catalog,
        histories=histories,
        intake=Intake(
            store,
            catalog,
            histories,
            Grants(storage.index, catalog, store),
            index,
            behind=storage.bucket_cache.kept if storage.bucket_cache else None,
        ),
        index=index,
        room=storage.eviction.space,
        exclusive=storage.locks.hold,
        age=lambda repo: age_rule(config, repo),
        hosted=hosted,
    )
