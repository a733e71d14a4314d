"""Opens what serves hosted registries: pulls, pushes and deletions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final

from mirror.aio.singleflight import SingleFlight
from mirror.app.object_storage.bucket_blobs import BucketBlobs
from mirror.app.reporting import open_announcer
from mirror.app.storage import Storage, immutable_tags, quota_rules
from mirror.config import Config, HostedSettings
from mirror.hosting.copying import Copying
from mirror.hosting.deleting import Deleting
from mirror.hosting.hosted_imports import HostedImports
from mirror.hosting.journal_looks import JournalLooks
from mirror.hosting.links import Links
from mirror.hosting.parts import HostedParts, PulledParts, one_by_one
from mirror.hosting.placing import Placing
from mirror.hosting.pushing import Pushing
from mirror.hosting.quotas import Quotas
from mirror.hosting.rights import Sources
from mirror.hosting.sessions import Sessions
from mirror.hosting.upload_turns import UploadTurns
from mirror.intake.integrity import Integrity
from mirror.intake.rechecks import Rechecks
from mirror.intake.tag_history import TagHistories, TamperProofClock
from mirror.oci.manifest import Manifest
from mirror.oci.reference import Repo
from mirror.policy.cluster.journal_names import of_repo
from mirror.policy.hosted.push_checks import HostedRules
from mirror.ports import Look
from mirror.repository.copied_blobs import CopiedBlobs
from mirror.repository.hosted import HostedRepository, HostedVerbs
from mirror.repository.hosted_content import HostedContent, HostedMemory
from mirror.repository.shared import Shared
from mirror.values.sizes import parse_size

#: Seconds for which a HEAD or a mount, and a manifest, waits for bytes that are sent from the cache to the bucket.
_PATIENCE: Final = 1.0
_PATIENCE_OF_MANIFESTS: Final = 20.0


@dataclass(frozen=True, slots=True)
class Hosting:
    """Makes the repositories of hosted registries."""

    verbs: HostedVerbs
    pulled: PulledParts
    memory: HostedMemory
    integrity: Integrity
    shared: Shared
    rules: dict[str, HostedRules]
    copying: Copying
    copied: CopiedBlobs | None

    def repository(self, repo: Repo) -> HostedRepository:
        """The repository of a hosted registry."""
        content = HostedContent(
            repo,
            self.pulled,
            self.verbs.links,
            self.memory,
            self.shared.caches,
            self.integrity,
            self.shared.executor,
            self.copied,
        )
        return HostedRepository(content, self.rules[repo.registry], self.verbs)


def open_hosting(
    config: Config,
    storage: Storage,
    shared: Shared,
    is_hosted: Callable[[str], bool],
    stack: AsyncExitStack,
) -> Hosting:
    """Opens everything that hosted registries need; `stack` closes it. To be called on the event loop."""

    parts = disk_parts(config, storage, shared.histories.clocks)
    views = storage.hosted.pulled
    histories = TagHistories(views.catalog, views.freezes, parts.histories.clocks)
    look = _open_look(config, storage)
    pulled = PulledParts(storage.contents, views.catalog, views.repositories, histories, parts.threads, look)
    pushing_threads = shared.executor if storage.bucket is None else storage.bucket.threads.pushes
    if storage.blobs is None:
        integrity, copied = Integrity(storage.contents, shared.caches.once, shared.background), None
    else:
        # its own calls in flight: those of the cache are about other files
        checks = SingleFlight()
        stack.push_async_callback(checks.aclose)
        integrity = Integrity(storage.blobs.files, checks, shared.background)
        copied = _open_copied(storage.blobs, shared, integrity)
    links = Links(parts, patience=_PATIENCE)
    placing = Placing(parts, Links(parts, patience=_PATIENCE_OF_MANIFESTS))
    deleting = Deleting(parts, links, placing)
    settings = config.hosting
    repeated = _recheck_repeated(config, storage, integrity, stack) if copied is None else lambda manifest: None
    pushing = Pushing(parts, placing, deleting, repeated=repeated)
    sources = Sources(
        parts,
        links,
        storage.hosted.ledger.holders,
        storage.index.holders,
        shared.grants,
        storage.store,
        shared.integrity,
        is_hosted=is_hosted,
    )
    verbs = HostedVerbs(
        parts,
        links,
        pushing,
        deleting,
        Sessions(
            storage.hosted.uploads,
            most=settings.max_uploads,
            most_per_caller=settings.max_uploads_per_caller,
            names=storage.cluster.sessions if storage.cluster is not None else None,
        ),
        sources,
        storage.eviction.space.make_room_for_push,
        pushing_threads,
        UploadTurns() if storage.blobs is not None else None,
    )
    rules = _rules(config)
    copying = Copying(parts, Links(parts), placing, pushing, sources, rules, pushing_threads)
    return Hosting(verbs, pulled, HostedMemory(pulled, shared.caches), integrity, shared, rules, copying, copied)


def _recheck_repeated(
    config: Config, storage: Storage, integrity: Integrity, stack: AsyncExitStack
) -> Callable[[Manifest], None]:
    """What is done about a push of an image that is here: see `Rechecks`."""
    rechecks, loop = Rechecks(storage.contents, integrity, parse_size(config.scrub.rate)), asyncio.get_running_loop()
    stack.push_async_callback(rechecks.aclose)

    def repeated(manifest: Manifest) -> None:
        loop.call_soon_threadsafe(rechecks.ask, [blob.digest for blob in manifest.blobs])

    return repeated


def _open_look(config: Config, storage: Storage) -> Callable[[Repo], Awaitable[Look]] | None:
    """What pulls await in a cluster; None otherwise."""
    use = storage.bucket
    if use is None or use.journals is None:
        return None
    looks = JournalLooks(use.journals, use.threads.looks, config.hosting.tag_freshness)
    return lambda repo: looks.look(of_repo(repo))


def _open_copied(blobs: BucketBlobs, shared: Shared, integrity: Integrity) -> CopiedBlobs:
    reads, intake = shared.bucket_reads, shared.intake
    if reads is None:
        raise TypeError("a bucket that nobody can read")
    return CopiedBlobs(
        blobs.files,
        blobs.pulled,
        reads,
        shared.flights,
        integrity,
        touch=intake.touch,
        named=intake.record_copy,
        failed=intake.health.failed,
        certain=blobs.hosted,
    )


def open_hosted_imports(config: Config, storage: Storage, caller: str) -> HostedImports:
    """Opens what imports images into hosted repositories. `caller` is whom records name."""
    parts = disk_parts(config, storage)
    links = Links(parts)
    placing = Placing(parts, links)
    pushing = Pushing(parts, placing, Deleting(parts, links, placing))
    return HostedImports(parts, links, pushing, storage.hosted.uploads, _rules(config), caller)


def disk_parts(config: Config, storage: Storage, clocks: TamperProofClock | None = None) -> HostedParts:
    """The bytes and records of hosted repositories, for whatever changes them. `clocks` date changes; None: those of
    this machine.
    """
    strict = storage.hosted.strict
    return HostedParts(
        storage.contents,
        storage.hosted.blobs,
        strict.catalog,
        strict.repositories,
        TagHistories(strict.catalog, strict.freezes, clocks or TamperProofClock(time.time)),
        Quotas(storage.hosted.ledger, quota_rules(config), catch_up=_quota_catch_up(config, storage)),
        immutable_tags(config),
        config.hosting.grace,
        open_announcer(config, storage),
        one_by_one if storage.bucket is None else storage.bucket.at_once,
        None if storage.bucket is None else storage.bucket.threads.requests,
        (lambda: None) if storage.leasing is None else storage.leasing.clock.check_moments,
    )


def _quota_catch_up(config: Config, storage: Storage) -> Callable[[str], bool] | None:
    """What a quota does in a cluster before it refuses a push; None otherwise."""
    use = storage.bucket
    if use is None or use.journals is None:
        return None
    # imported here: a mirror without replicas does not even load it
    from mirror.app.clusters.journal_following import catches_up_quotas

    return catches_up_quotas(config, storage, use)


def _rules(config: Config) -> dict[str, HostedRules]:
    return {entry.name: hosted_rules(entry) for entry in config.hosted}


def hosted_rules(settings: HostedSettings) -> HostedRules:
    """The rules of one hosted registry."""
    return HostedRules(
        tuple(settings.repositories),
        read_only=settings.read_only,
        sparse_indexes=settings.sparse_manifests,
        sparse_images=settings.sparse_manifests,
        keep_deleted=settings.keep_deleted,
    )
