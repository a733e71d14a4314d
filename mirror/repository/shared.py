"""What the repositories of one process share. Each class of this room is given the parts that it uses, never all."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from mirror import telemetry
from mirror.aio.background import BackgroundTasks
from mirror.aio.closing import close_all
from mirror.fills.bucket_source import BucketReads
from mirror.fills.flights import Flights
from mirror.fills.lazy_pulls import LazyPulls
from mirror.fills.read_ahead import ReadAhead
from mirror.fills.sources import BlobSource
from mirror.intake.grants import Grants
from mirror.intake.intake import Intake
from mirror.intake.integrity import Integrity
from mirror.intake.tag_history import TagHistories
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.rules import LazyRule, RouteRule
from mirror.ports import BlobObjects, BlobStore, Catalog, Upstream
from mirror.repository.caches import Caches
from mirror.repository.miss_report import Misses
from mirror.repository.proxied import ProxiedRepository
from mirror.repository.proxied_blobs import LazyRoute, ProxiedBlobs, Transfers
from mirror.repository.proxied_manifests import ProxiedManifests
from mirror.repository.questions import Questions
from mirror.repository.sealed import KeptBlobs, SealedRepository
from mirror.repository.stored import Restores, StoredRepository
from mirror.repository.tag_answers import TagAnswers
from mirror.repository.tag_pages import TagPages

if TYPE_CHECKING:
    # a mirror without replicas does not even load it
    from mirror.fills.peer_source import PeerReads


@dataclass(frozen=True, slots=True)
class Shared:
    """The parts of which repositories are made.

    `executor` runs the threads that receive blobs. `label` returns the configured upstream that a registry belongs to,
    as a label of metrics: names that only match a wildcard must not become labels. `nearer` returns what makes sources
    of a repository's blobs that are asked before its upstream; None if there are none. `objects` returns which objects
    of the bucket have a repository's blobs; None if no client is sent there. `peers` returns how a repository's blobs
    are read from other replicas; None if they are not, and not given to them. `bucket_reads` reads blobs from the
    bucket; None if there is no bucket. `restores` brings back what the disk has lost, and `kept` has blobs that sealed
    repositories lack; None if nothing does.
    """

    store: BlobStore
    catalog: Catalog
    histories: TagHistories
    grants: Grants
    caches: Caches
    questions: Questions
    integrity: Integrity
    intake: Intake
    flights: Flights
    ahead: ReadAhead
    misses: Misses
    background: BackgroundTasks
    executor: Executor
    label: Callable[[str], str] = str
    bucket_reads: BucketReads | None = None
    nearer: Callable[[Repo], Callable[[Digest], BlobSource] | None] = lambda _: None
    objects: Callable[[Repo], BlobObjects | None] = lambda _: None
    peers: Callable[[Repo], PeerReads | None] = lambda _: None
    restores: Restores | None = None
    kept: Callable[[Repo], KeptBlobs | None] = lambda _: None
    #: Fetches parts of blobs; None if no route sends them unverified.
    lazy: LazyPulls | None = None
    #: In a cluster, awaited before all repositories are listed: others may have added some. Raises `StoreError`.
    catch_up: Callable[[], Awaitable[None]] | None = None

    def forget(self, repo: Repo, tags: Collection[str], digests: Collection[Digest]) -> None:
        """Drops from memory what was purged: tags, manifests, and the right to serve manifests and blobs. To be called
        on the event loop, like everything that uses this memory.
        """
        self.caches.forget(repo, tags, digests)
        self.grants.forget(repo, digests)

    def stored(self, repo: Repo) -> StoredRepository:
        """Returns what the store has of a repository."""
        return StoredRepository(repo, self.store, self.catalog, self.caches, self.intake, self.restores)

    def sealed(self, repo: Repo) -> SealedRepository:
        """Makes a repository without an upstream."""
        return SealedRepository(
            self.stored(repo),
            self.histories,
            self.grants,
            self.caches,
            self.integrity,
            self.intake,
            self.misses,
            self.executor,
            self.kept(repo),
        )

    def proxied(self, repo: Repo, upstream: Upstream, rule: RouteRule) -> ProxiedRepository:
        """Makes a repository of an upstream."""
        stored, label = self.stored(repo), self.label(repo.registry)
        asking = self.caches, self.questions
        tags = TagAnswers(repo, upstream, rule, self.histories, *asking, self.intake, label, stored.restore_tag)
        manifests = ProxiedManifests(stored, upstream, tags, self.grants, *asking, self.integrity, self.intake)
        blobs = self.blobs(stored, upstream, rule.lazy)
        pages = TagPages(repo, upstream, *asking, self.intake)
        ahead = self.ahead if rule.prefetch else None
        return ProxiedRepository(stored, upstream, manifests, blobs, pages, *asking, self.intake, ahead)

    def blobs(
        self,
        stored: StoredRepository,
        upstream: Upstream,
        lazy: LazyRule | None,
        *,
        hops: int = 0,
        besides: Collection[str] = (),
    ) -> ProxiedBlobs:
        """Makes the blobs of a repository of an upstream. `lazy` says whether parts of them are sent unverified. `hops`
        replicas wait for them, and the members `besides` are not asked for any.
        """
        repo = stored.repo
        reads = self.peers(repo)
        return ProxiedBlobs(
            stored,
            upstream,
            self.grants,
            Transfers(
                self.flights,
                self.executor,
                telemetry.UPSTREAM_BYTES.labels(self.label(repo.registry)).inc,
                self.nearer(repo),
                None if reads is None else partial(reads.sources, repo, hops=hops, besides=besides),
                self.objects(repo),
                self.bucket_reads.opening if self.bucket_reads else None,
                None if lazy is None or self.lazy is None else LazyRoute(self.lazy, lazy),
            ),
            self.caches,
            self.questions,
            self.integrity,
            self.intake,
        )

    async def aclose(self) -> None:
        """Ends all fetching, cancels shared work, and waits for pending writes to index and disk. Repeatable."""
        await close_all(
            self.ahead.aclose,
            *(() if self.lazy is None else (self.lazy.aclose,)),
            self.flights.aclose,
            self.background.finish,
            self.caches.once.aclose,
            # also for what the shared work has started meanwhile
            self.intake.aclose,
        )
