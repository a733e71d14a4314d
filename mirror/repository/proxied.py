"""A repository of another registry, seen through the store: what is here is served from here, the rest is fetched.

A tag, in four cases:

    fresh                      its answer stands, upstream is not asked
    not fresh, upstream says   the same digest: the clock begins anew; another: the tag moves at once
    not fresh, upstream down   the old answer, marked stale, for as long as the route allows
    not fresh, upstream slow   likewise, after some seconds; upstream's answer is for those who come later
    unknown                    upstream is asked, by HEAD, which costs nothing on Docker Hub

Before these comes a freeze: then upstream is not asked. After them comes the route's minimum age: what upstream says
may be too new to be served (`tag_history.py`).

A manifest is only fetched by digest, after its tag was resolved, and never if this repository has it already.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol, TypeVar

from mirror import telemetry
from mirror.errors import (
    BlobDamaged,
    BlobUnknown,
    HeldBack,
    IndexUnavailable,
    ManifestUnknown,
    StoreError,
    StoreFull,
    UpstreamInvalid,
    UpstreamNotKnown,
    UpstreamThrottled,
    UpstreamUnavailable,
)
from mirror.memo import MISSING, Memo
from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor, Manifest, read_descriptor, read_manifest
from mirror.oci.reference import Reference, Repo
from mirror.oci.request import Kind
from mirror.once import Once
from mirror.policy.freshness import FreshnessRule, is_fresh, may_serve_stale
from mirror.policy.history import Kept
from mirror.policy.moments import format_moment
from mirror.policy.records import ContentRecord, ManifestNames, ManifestRecord, TagRecord
from mirror.policy.rules import RouteRule
from mirror.policy.versions import looks_like_version
from mirror.ports import BlobInfo, BlobStore, Body, Catalog, ContentIndex, Upstream
from mirror.repository.ahead import Ahead, Fetching
from mirror.repository.content import (
    BlobContent,
    FlyingContent,
    ManifestAnswer,
    Outcome,
    Passing,
    PassingContent,
    StoredContent,
)
from mirror.repository.flights import Flights, Vouch
from mirror.repository.grants import Grants, named_by
from mirror.repository.hot import Hot
from mirror.repository.misses import Misses
from mirror.repository.referring import Referring
from mirror.repository.stored import indexes_naming, is_right, set_aside, stored_manifest
from mirror.repository.tag_history import TagHistories

__all__ = ["BlobStat", "Listing", "ProxiedRepository", "Shelf"]

T = TypeVar("T")

#: Seconds. How long upstream is not asked again after it said «not known», and after it was down and we said «stale».
_UNKNOWN_FOR: Final = 10.0
_STALE_FOR: Final = 5.0
#: Seconds that an answer waits for upstream where there is an older one to give: one that hangs would hold up every
#: pull until its time-out, which is longer than clients are patient.
_SLOW_AFTER: Final = 5.0
#: Seconds that another process may keep us from asking upstream ourselves. After that each process asks for itself.
#: Containerd gives up without headers after 30 s, so both waits of a pull by tag (tag, manifest) stay well below that.
_ALONE_FOR: Final = 10.0
#: Seconds that an answer waits for the index to take note of a blob.
_PATIENCE: Final = 0.25
#: Seconds until the disk is looked at again for what a tag points to, and for a manifest that is in memory.
_LOOK_EVERY: Final = 2.0
#: Seconds by which a clock may have been put back before what was remembered under the later time counts for nothing.
_CLOCK_SLACK: Final = 60.0
#: Seconds between two looks at whether another process has published what it has filled, and how many there are.
_LOOK_AGAIN: Final = 0.1
_PUBLISHING: Final = 1200
#: Manifests that upstream is asked for, one after the other, until it knows one.
_PROOFS: Final = 3
#: Seconds that a list of tags or referrers is believed.
_LIST_FOR: Final = 60.0


class Exclusive(Protocol):
    """A lock over all processes on one store."""

    def __call__(self, key: str) -> AbstractAsyncContextManager[None]: ...


@dataclass(frozen=True, slots=True)
class HotTag:
    """What a tag points to, how that was learnt, and from when until when (epoch seconds) it is believed.

    `kept` says why this is not what upstream would say.
    """

    record: TagRecord
    outcome: Outcome
    since: float
    until: float
    kept: Kept | None = None


@dataclass(frozen=True, slots=True)
class BlobStat:
    """What HEAD of a blob tells: `size` in bytes, None where upstream does not say it."""

    size: int | None
    outcome: Outcome
    upstream: str


@dataclass(frozen=True, slots=True)
class Listing:
    """Tags, or referrers, and how the list came about."""

    items: tuple[Any, ...]
    outcome: Outcome
    upstream: str


@dataclass(slots=True)
class Shelf:
    """What all repositories share."""

    store: BlobStore
    catalog: Catalog
    index: ContentIndex
    grants: Grants
    flights: Flights
    memo: Memo
    executor: Executor
    exclusive: Exclusive
    touch: Callable[[Digest], None]
    name: Callable[[ManifestNames, int], Coroutine[Any, Any, None]]
    histories: TagHistories
    #: What was not here in a sealed repository.
    misses: Misses
    #: The configured upstream that a registry's name falls under: names below a wildcard are no labels of metrics.
    label: Callable[[str], str] = str
    now: Callable[[], float] = time.time
    tags: Hot[tuple[Repo, str], HotTag] = field(default_factory=lambda: Hot(16 << 20, lambda _: 512))
    manifests: Hot[tuple[Repo, Digest], Manifest] = field(
        default_factory=lambda: Hot(64 << 20, lambda manifest: len(manifest.content) * 3 + 1024)
    )
    #: When the disk was last looked at for a manifest that is in memory (epoch seconds).
    looked: Hot[Digest, float] = field(default_factory=lambda: Hot(4 << 20, lambda _: 256))
    #: Sizes in bytes of blobs that were hashed here because a manifest says another size.
    sound: Hot[Digest, int] = field(default_factory=lambda: Hot(1 << 20, lambda _: 256))
    once: Once = field(default_factory=Once)
    telling: set[asyncio.Task[None]] = field(default_factory=set)
    settling: asyncio.Lock = field(default_factory=asyncio.Lock)
    uncached_since: float | None = None
    ahead: Ahead | None = None
    referring: Referring = field(init=False)

    def __post_init__(self) -> None:
        self.referring = Referring(self.store, self.catalog, self.once, lambda: self.now())

    def went_uncached(self, error: StoreError, what: object) -> None:
        """The store could not take something: said once, until it has taken something again."""
        telemetry.UNCACHED.inc()
        if self.uncached_since is None:
            self.uncached_since = self.now()
            telemetry.log.error("the store is failing; pulls go through uncached", first=str(what), reason=str(error))

    def went_cached(self) -> None:
        """The store has taken something."""
        if self.uncached_since is not None:
            telemetry.log.info("the store takes content again", uncached_since=self.uncached_since)
            self.uncached_since = None

    def forget(self, repo: Repo, tags: Iterable[str], digests: Iterable[Digest]) -> None:
        """These were purged: they are not answered from memory."""
        for tag in tags:
            self.tags.drop((repo, tag))
        for digest in digests:
            self.manifests.drop((repo, digest))

    async def is_sound(self, info: BlobInfo) -> bool:
        """Who is wrong, the disk or the manifest? A manifest that lies about a size must not cost others their blob."""
        if self.sound.get(info.digest) == info.size:
            return True
        matches = await self.once.run(
            ("sound", info.digest, info.size), lambda: asyncio.to_thread(is_right, self.store, info.digest)
        )
        if matches:
            self.sound.put(info.digest, info.size)
        return matches

    async def landed(self, info: BlobInfo) -> None:
        """A blob was published: remember it."""
        self.went_cached()
        await asyncio.wait({self._behind(self._tell_index(info))}, timeout=_PATIENCE)

    async def named(self, manifest: Manifest) -> None:
        """A manifest is here: what it names only goes together with it."""
        telling = self._behind(self.name(ManifestNames.of(manifest), len(manifest.content)))
        await asyncio.wait({telling}, timeout=_PATIENCE)

    def settle(self) -> None:
        """Make durable what was put, behind the answer: a busy disk takes seconds for it, and a power cut before its
        end costs no more than asking upstream again.
        """
        self._behind(self._settle())

    async def write(self, work: Callable[..., T], *arguments: object) -> T:
        """Blocking work that syncs. Not in the threads that read: they are few, and a busy disk would hold them all."""
        return await asyncio.get_running_loop().run_in_executor(self.executor, work, *arguments)

    def _behind(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self.telling.add(task)
        task.add_done_callback(self.telling.discard)
        return task

    async def _settle(self) -> None:
        try:
            await self.settled()
        except StoreError as error:
            self.went_uncached(error, "names of blobs, tags and manifests")

    async def settled(self) -> None:
        """What was put so far outlives a power cut when this returns. Raises `StoreError`."""
        # one at a time, which sees to all that was put meanwhile
        async with self.settling:
            await self.write(self.store.settle)
            await self.write(self.catalog.settle)

    async def _tell_index(self, info: BlobInfo) -> None:
        # without it the blob is found when index and disk are compared
        with suppress(IndexUnavailable):
            await self.index.put([ContentRecord(info.digest, info.size, self.now())])

    async def aclose(self) -> None:
        """Wait for what index and disk are still being told, end what is shared. Repeatable."""
        if self.ahead:
            await self.ahead.aclose()
        await asyncio.gather(*self.telling)
        await self.once.aclose()


class ProxiedRepository:
    """One repository of one upstream. Cheap to make; everything that lasts is on the shelf."""

    def __init__(self, repo: Repo, upstream: Upstream, rule: RouteRule, shelf: Shelf) -> None:
        self.repo = repo
        self._upstream = upstream
        self._rule = rule
        self._shelf = shelf

    # ----------------------------------------------------------------------------------------- manifests

    async def manifest(self, reference: Reference) -> ManifestAnswer:
        """The manifest itself. Raises `ManifestUnknown`, `UpstreamError`."""
        if isinstance(reference, Digest):
            manifest, outcome = await self._manifest(reference)
            return self._answer(manifest, outcome)
        tag = await self._tag(reference)
        try:
            manifest, fetched = await self._manifest(tag.record.digest)
        except ManifestUnknown as error:
            if tag.kept:
                raise self._kept_but_gone(reference, tag, error) from error
            # the tag moved on between the HEAD and the GET, or the record is of a digest that upstream has dropped
            tag = await self._ask_again(reference)
            manifest, fetched = await self._manifest(tag.record.digest)
        if fetched is Outcome.MISS and tag.outcome is not Outcome.STALE:
            return self._answer(manifest, Outcome.MISS, tag.kept)
        return self._answer(manifest, tag.outcome, tag.kept)

    async def resolve(self, reference: Reference) -> ManifestAnswer:
        """What HEAD of a manifest tells; upstream is asked for no more than that. Raises like `manifest`."""
        if isinstance(reference, Digest):
            return await self._resolve_digest(reference)
        tag = await self._tag(reference)
        if tag.kept:
            return await self._resolve_kept(reference, tag)
        record = tag.record
        self._shelf.touch(record.digest)
        return ManifestAnswer(record.digest, record.media_type, record.size, None, tag.outcome, self._upstream.name)

    async def _resolve_kept(self, reference: str, tag: HotTag) -> ManifestAnswer:
        """An older digest may be gone here and upstream: HEAD says what GET would."""
        try:
            found = await self._resolve_digest(tag.record.digest)
        except ManifestUnknown as error:
            raise self._kept_but_gone(reference, tag, error) from error
        return replace(found, outcome=tag.outcome if found.outcome is Outcome.HIT else found.outcome, kept=tag.kept)

    def _kept_but_gone(self, reference: str, tag: HotTag, error: ManifestUnknown) -> ManifestUnknown:
        why = "frozen at" if tag.kept is Kept.FROZEN else "held back by minimum_age at"
        return ManifestUnknown(
            f"{self.repo}:{reference} is {why} {tag.record.digest}, which is not here and cannot be fetched any more:"
            f" {error}"
        )

    async def _resolve_digest(self, digest: Digest) -> ManifestAnswer:
        manifest = self._shelf.manifests.get((self.repo, digest)) or await asyncio.to_thread(self._stored, digest)
        if manifest:
            self._shelf.touch(digest)
            return self._answer(manifest, Outcome.HIT)
        found = await self._shelf.once.run(("resolve", self.repo, digest), lambda: self._ask_for(digest))
        return ManifestAnswer(digest, found.media_type, found.size, None, Outcome.MISS, self._upstream.name)

    async def _ask_for(self, digest: Digest) -> Descriptor:
        """By HEAD, what upstream says of a manifest that is not here."""
        key = f"manifest {self.repo}@{digest}"
        if await self._shelf.memo.get(key) is not MISSING:
            raise ManifestUnknown(f"{self.repo} has no manifest {digest}")
        try:
            return await self._upstream.resolve(self.repo.name, digest)
        except UpstreamNotKnown as error:
            await self._shelf.memo.put(key, "unknown", _UNKNOWN_FOR)
            raise ManifestUnknown(f"{self.repo} has no manifest {digest}") from error

    def _answer(self, manifest: Manifest, outcome: Outcome, kept: Kept | None = None) -> ManifestAnswer:
        content, upstream = manifest.content, self._upstream.name
        return ManifestAnswer(manifest.digest, manifest.media_type, len(content), content, outcome, upstream, kept)

    async def _tag(self, tag: str) -> HotTag:
        hot = self._shelf.tags.get((self.repo, tag))
        if hot and hot.since - _CLOCK_SLACK <= self._shelf.now() < hot.until:
            return hot
        try:
            async with asyncio.timeout(_SLOW_AFTER):
                return await self._refreshed(tag)
        except TimeoutError:
            return await self._meanwhile(tag) or await self._refreshed(tag)

    async def _refreshed(self, tag: str) -> HotTag:
        """Goes on for those who come later when nobody waits for it any more."""

        async def refresh() -> HotTag:
            found = await self._decide(tag, self._refresh)
            self._keep_hot(tag, found)
            return found

        return await self._shelf.once.run(("tag", self.repo, tag), refresh)

    def _keep_hot(self, tag: str, found: HotTag) -> None:
        # to those who come later a new answer is a plain hit, a stale one stays stale
        if found.outcome is Outcome.STALE:
            later, until = Outcome.STALE, found.until
        else:
            # other processes, the command line among them, change what is on the disk
            later, until = Outcome.HIT, min(found.until, self._shelf.now() + _LOOK_EVERY)
        self._shelf.tags.put((self.repo, tag), HotTag(found.record, later, found.since, until, found.kept))

    async def _meanwhile(self, tag: str) -> HotTag | None:
        """What can be said while upstream takes its time; None: nothing. Too new an answer is held back here, too."""
        record = await asyncio.to_thread(self._shelf.catalog.get_tag, self.repo, tag)
        if record is None:
            return None
        if self._is_fresh(record):
            return await self._aged(tag, self._hot(record, Outcome.HIT))
        if not may_serve_stale(record.fetched_at, self._shelf.now(), self._rule.freshness):
            return None
        self._log_stale(record, f"no answer for {_SLOW_AFTER:g} s")
        found = await self._aged(tag, self._hot(record, Outcome.STALE))
        self._keep_hot(tag, found)
        return found

    def _log_stale(self, record: TagRecord, reason: str) -> None:
        telemetry.log.warning(
            "serving a stale tag",
            repository=str(self.repo),
            tag=record.tag,
            age=round(self._shelf.now() - record.fetched_at),
            reason=reason,
        )

    async def _ask_again(self, tag: str) -> HotTag:
        """Upstream's answer now, whatever is remembered."""
        self._shelf.tags.drop((self.repo, tag))
        return await self._shelf.once.run(
            ("tag again", self.repo, tag), lambda: self._decide(tag, self._revalidate_now)
        )

    async def _revalidate_now(self, tag: str) -> HotTag:
        key = f"tag {self.repo}:{tag}"
        async with self._alone(key):
            record = await asyncio.to_thread(self._shelf.catalog.get_tag, self.repo, tag)
            return await self._revalidate(tag, record, key)

    async def _decide(self, tag: str, ask: Callable[[str], Awaitable[HotTag]]) -> HotTag:
        """What the tag answers: a freeze goes before what `ask` learns, the minimum age after it."""
        freeze = await asyncio.to_thread(self._shelf.histories.frozen, self.repo, tag)
        if freeze:
            now = self._shelf.now()
            # nothing that upstream has said: older than any such record
            record = TagRecord(tag, freeze.digest, freeze.media_type, freeze.size, 0.0)
            return HotTag(record, Outcome.HIT, now, now + _LOOK_EVERY, Kept.FROZEN)
        return await self._aged(tag, await ask(tag))

    async def _aged(self, tag: str, said: HotTag) -> HotTag:
        """What the minimum age leaves of it."""
        return await self._hold_back(tag, said) if self._rule.age.minimum else said

    async def _hold_back(self, tag: str, said: HotTag) -> HotTag:
        choice = await asyncio.to_thread(self._shelf.histories.choose, self.repo, said.record, self._rule.age)
        if choice.serve is None:
            raise HeldBack(
                f"{self.repo}:{tag} points to {choice.newest.digest}, which this mirror has not known for long enough"
                f" (minimum_age); the tag is served from {format_moment(choice.any_from)} on"
            )
        if not choice.held_back:
            return said
        older = choice.serve
        record = TagRecord(tag, older.digest, older.media_type, older.size, said.record.fetched_at)
        # upstream was asked, and what is answered is what is here
        outcome = Outcome.REVALIDATED if said.outcome is Outcome.MISS else said.outcome
        return replace(said, record=record, outcome=outcome, kept=Kept.TOO_NEW)

    async def _refresh(self, tag: str) -> HotTag:
        """One process at a time asks upstream for a tag; the others find its answer on the disk."""
        key = f"tag {self.repo}:{tag}"
        record = await asyncio.to_thread(self._shelf.catalog.get_tag, self.repo, tag)
        if record and self._is_fresh(record):
            return self._hot(record, Outcome.HIT)
        # a «not known» has dropped the record: if there is one, an import has brought the tag since
        if record is None and await self._shelf.memo.get(key) is not MISSING:
            raise ManifestUnknown(f"{self.repo} has no tag {tag}")
        async with self._alone(key):
            record = await asyncio.to_thread(self._shelf.catalog.get_tag, self.repo, tag)
            if record and self._is_fresh(record):
                return self._hot(record, Outcome.HIT)
            return await self._revalidate(tag, record, key)

    @asynccontextmanager
    async def _alone(self, key: str) -> AsyncIterator[None]:
        """One process at a time, so that upstream is asked once. A help, not a condition: a lock that cannot be had, or
        whose holder has stopped in its tracks, keeps nobody from an answer.
        """
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(_ALONE_FOR):
                    await stack.enter_async_context(self._shelf.exclusive(key))
            except StoreError as error:
                self._shelf.went_uncached(error, key)
            except TimeoutError:
                telemetry.log.warning("a lock was not to be had", key=key, waited=_ALONE_FOR)
            yield

    def _is_fresh(self, record: TagRecord) -> bool:
        return is_fresh(record.fetched_at, self._shelf.now(), self._freshness)

    @property
    def _freshness(self) -> FreshnessRule:
        return self._rule.freshness.stretched(self._upstream.patience)

    def _hot(self, record: TagRecord, outcome: Outcome) -> HotTag:
        if outcome is Outcome.STALE:
            return HotTag(record, outcome, self._shelf.now(), self._shelf.now() + _STALE_FOR)
        return HotTag(record, outcome, record.fetched_at, record.fetched_at + self._freshness.tag_ttl)

    async def _revalidate(self, tag: str, record: TagRecord | None, key: str) -> HotTag:
        try:
            found = await self._upstream.resolve(self.repo.name, tag)
        except UpstreamNotKnown as error:
            await self._shelf.memo.put(key, "unknown", _UNKNOWN_FOR)
            if record:
                await asyncio.to_thread(self._shelf.catalog.drop_tag, self.repo, tag)
            raise ManifestUnknown(f"{self.repo} has no tag {tag}") from error
        except (UpstreamUnavailable, UpstreamThrottled, UpstreamInvalid) as error:
            if record and may_serve_stale(record.fetched_at, self._shelf.now(), self._rule.freshness):
                self._log_stale(record, str(error))
                return self._hot(record, Outcome.STALE)
            raise
        fresh = TagRecord(tag, found.digest, found.media_type, found.size, self._shelf.now())
        was = await self._remember(record, fresh)
        if was:
            self._tell_of_move(tag, was, fresh.digest)
        same = record is not None and record.digest == fresh.digest
        return self._hot(fresh, Outcome.REVALIDATED if same else Outcome.MISS)

    async def _remember(self, record: TagRecord | None, fresh: TagRecord) -> Digest | None:
        """The other digest that the tag pointed to before."""
        try:
            was = await self._shelf.write(self._shelf.histories.put_tag, self.repo, record, fresh, self._rule.age)
            self._shelf.settle()
            return was
        except StoreError as error:
            self._shelf.went_uncached(error, f"{self.repo}:{fresh.tag}")
            return record.digest if record and record.digest != fresh.digest else None

    def _tell_of_move(self, tag: str, was: Digest, now: Digest) -> None:
        told = {"repository": str(self.repo), "tag": tag, "was": str(was), "now": str(now)}
        if looks_like_version(tag):
            telemetry.VERSION_TAGS_MOVED.labels(self._shelf.label(self.repo.registry)).inc()
            telemetry.log.warning("version tag moved", **told)
        else:
            telemetry.log.info("tag moved", **told)

    async def _manifest(self, digest: Digest) -> tuple[Manifest, Outcome]:
        """By digest, from memory, disk or upstream."""
        self._shelf.touch(digest)
        hot = self._shelf.manifests.get((self.repo, digest))
        if hot:
            await self._put_back(hot)
            return hot, Outcome.HIT
        loaded, outcome = await self._shelf.once.run(("manifest", self.repo, digest), lambda: self._load(digest))
        self._shelf.manifests.put((self.repo, digest), loaded)
        return loaded, outcome

    async def _put_back(self, manifest: Manifest) -> None:
        """What was evicted but is in memory gets its place on the disk again: else what it names would be nobody's."""
        now = self._shelf.now()
        looked = self._shelf.looked.get(manifest.digest)
        if looked is not None and 0 <= now - looked < _LOOK_EVERY:
            return
        self._shelf.looked.put(manifest.digest, now)
        if not self._is_here(manifest.digest):
            await self._shelf.once.run(("put back", self.repo, manifest.digest), lambda: self._place(manifest))

    async def _place(self, manifest: Manifest) -> None:
        if info := await self._keep(manifest):
            await self._shelf.landed(info)
            await self._shelf.named(manifest)

    async def _load(self, digest: Digest) -> tuple[Manifest, Outcome]:
        stored = await self._load_stored(digest)
        if stored:
            return stored, Outcome.HIT
        key = f"manifest {self.repo}@{digest}"
        if await self._shelf.memo.get(key) is not MISSING:
            raise ManifestUnknown(f"{self.repo} has no manifest {digest}")
        async with self._alone(key):
            stored = await self._load_stored(digest)
            if stored:
                return stored, Outcome.HIT
            try:
                # its bytes may be here for another repository; only upstream can tell that they are this one's too
                manifest = await self._upstream.manifest(self.repo.name, digest)
            except UpstreamNotKnown as error:
                await self._shelf.memo.put(key, "unknown", _UNKNOWN_FOR)
                raise ManifestUnknown(f"{self.repo} has no manifest {digest}") from error
            info = await self._keep(manifest)
        # the others find it on the disk by now: what follows is no reason to keep them waiting
        if info:
            await self._shelf.landed(info)
            await self._shelf.named(manifest)
        await self._shelf.grants.give(self.repo, named_by(manifest))
        return manifest, Outcome.MISS

    async def _load_stored(self, digest: Digest) -> Manifest | None:
        stored = await asyncio.to_thread(self._stored, digest)
        if stored:
            # whoever has the manifest may have its blobs: other processes may not know that yet
            await self._shelf.grants.give(self.repo, named_by(stored))
            await self._shelf.named(stored)
        return stored

    async def _keep(self, manifest: Manifest) -> BlobInfo | None:
        """Bytes first, then the link to them: a link without bytes would be a promise. None: the store cannot."""
        since = self._shelf.histories.clocks.later()
        record = ManifestRecord(manifest.digest, manifest.media_type, len(manifest.content), since)
        try:
            info = await self._shelf.write(self._shelf.store.put, manifest.digest, manifest.content)
            await self._shelf.write(self._shelf.catalog.put_manifest, self.repo, record)
        except StoreError as error:
            self._shelf.went_uncached(error, manifest.digest)
            return None
        self._shelf.settle()
        return info

    def _stored(self, digest: Digest) -> Manifest | None:
        """Blocking: the manifest, if this repository has it and its bytes are right."""
        return stored_manifest(self._shelf.store, self._shelf.catalog, self.repo, digest)

    async def prove(self, kind: Kind, reference: Reference | None) -> None:
        """Returns where upstream, asked now, gives what is meant to whoever we act for; nothing remembered counts.

        Raises `UpstreamDenied`, `ManifestUnknown`, `BlobUnknown`, `UpstreamError`.
        """
        name = self.repo.name
        try:
            if kind is Kind.MANIFEST and reference is not None:
                await self._upstream.resolve(name, reference)
                return
            for record in await asyncio.to_thread(self._some_manifests):
                with suppress(UpstreamNotKnown):
                    # by HEAD, which costs nothing; who may have this may have all of the repository
                    await self._upstream.resolve(name, record.digest)
                    return
            if kind is Kind.BLOB and isinstance(reference, Digest):
                await self._upstream.blob_size(name, reference)
            else:
                await self._upstream.tags(name)
        except UpstreamNotKnown as error:
            unknown = BlobUnknown if kind is Kind.BLOB else ManifestUnknown
            raise unknown(f"{self.repo} has no {reference}") from error

    def _some_manifests(self) -> list[ManifestRecord]:
        """Blocking: the latest that are here."""
        records = self._shelf.catalog.manifests(self.repo)
        return heapq.nlargest(_PROOFS, records, key=lambda record: record.fetched_at)

    # --------------------------------------------------------------------------------------------- blobs

    async def blob(self, digest: Digest) -> BlobContent:
        """The blob, from its first byte on. The caller closes it. Raises `BlobUnknown`, `UpstreamError`."""
        granted = await self._granted(digest)
        if granted is None:
            return await self._blob_without_grant(digest)
        try:
            info, reader = self._shelf.store.open(digest)
        except (BlobUnknown, StoreError):
            return await self._fly(digest, granted)
        if granted not in (-1, info.size) and not await self._shelf.is_sound(info):
            reader.close()
            damage = BlobDamaged(f"{info.size} bytes on disk, {granted} expected")
            await asyncio.to_thread(set_aside, self._shelf.store, digest, damage)
            return await self._fly(digest, granted)
        self._shelf.touch(digest)
        return StoredContent(digest, info.size, reader, self._passing(digest))

    async def fetch(self, digest: Digest, progress: Callable[[int, int | None], None]) -> bool:
        """Have the blob here, with nobody to send it to; False: it was here already.

        `progress` is told how many bytes are here and how many there will be (None: unknown). Raises like `blob`, and
        `StoreError` where the store cannot take it.
        """
        content = await self.blob(digest)
        try:
            if isinstance(content, PassingContent):
                raise StoreFull(f"the store cannot take {digest}")
            position = 0
            progress(position, content.size)
            while (limit := await content.beyond(position)) > position:
                position = limit
                progress(position, content.size)
            if isinstance(content, FlyingContent):
                await self._stored_by_flight(content)
            return content.outcome is not Outcome.HIT
        finally:
            content.close()

    async def _stored_by_flight(self, content: FlyingContent) -> None:
        """Returns once it has its name in the store. Raises `StoreError` where it will not have one."""
        filled_here = await content.settled()
        for _ in range(_PUBLISHING):
            if self._is_here(content.digest):
                return
            if filled_here:
                raise StoreError(f"{content.digest} could not be stored")
            # another process has filled it and makes it durable; should that process end first, this one goes on
            await asyncio.sleep(_LOOK_AGAIN)
            again = await self.blob(content.digest)
            try:
                if isinstance(again, PassingContent):
                    raise StoreFull(f"the store cannot take {content.digest}")
                filled_here = isinstance(again, FlyingContent) and await again.settled()
            finally:
                again.close()
        raise StoreError(f"the process that has filled {content.digest} does not publish it")

    async def fetch_manifest(self, reference: Reference) -> ManifestAnswer:
        """The manifest, on the disk when this returns, its tag too (durable after `settled`): an answer from memory may
        be all that is left of it, or all that could be had of it. Raises like `manifest`, and `StoreError` where the
        store cannot take it.
        """
        answer = await self.manifest(reference)
        if not await asyncio.to_thread(self._stored, answer.digest):
            manifest = read_manifest(answer.content or b"", answer.media_type, algorithm=answer.digest.algorithm)
            await self._shelf.landed(await self._shelf.write(self._put_manifest, manifest))
            await self._shelf.named(manifest)
        # what a freeze or the minimum age says is on the disk, and is nothing that upstream has said
        if isinstance(reference, str) and answer.kept is None:
            hot = self._shelf.tags.get((self.repo, reference))
            await self._shelf.write(self._put_tag, reference, answer, hot.record if hot and not hot.kept else None)
        return answer

    def _put_manifest(self, manifest: Manifest) -> BlobInfo:
        """Blocking. Raises `StoreError`."""
        since = self._shelf.histories.clocks.later()
        info = self._shelf.store.put(manifest.digest, manifest.content)
        record = ManifestRecord(manifest.digest, manifest.media_type, len(manifest.content), since)
        self._shelf.catalog.put_manifest(self.repo, record)
        return info

    def _put_tag(self, tag: str, answer: ManifestAnswer, known: TagRecord | None) -> None:
        """Blocking: if the disk has no record of the tag, or an older one than is `known`. Raises `StoreError`."""
        kept = self._shelf.catalog.get_tag(self.repo, tag)
        if kept is None or (known and known.fetched_at > kept.fetched_at):
            fresh = TagRecord(tag, answer.digest, answer.media_type, answer.size, self._shelf.now())
            self._shelf.histories.put_tag(self.repo, kept, known or fresh, self._rule.age)

    def fetch_ahead(self, answer: ManifestAnswer, by: Fetching | None = None) -> None:
        """A client was given this: if it had to be fetched, and the route says so, begin with its blobs, before they
        are asked for; through `by`, where something stands before this repository. Returns at once.
        """
        # while the store takes nothing, each blob fetched ahead would be fetched twice
        if answer.outcome is Outcome.MISS and self._rule.prefetch and self._shelf.uncached_since is None:
            manifest = self._shelf.manifests.get((self.repo, answer.digest))
            if manifest and self._shelf.ahead:
                self._shelf.ahead.begin(by or self, manifest)

    async def settled(self) -> None:
        """What was fetched so far outlives a power cut when this returns. Raises `StoreError`."""
        await self._shelf.settled()

    def holds(self, digest: Digest) -> bool:
        """Whether its bytes are here, for whichever repository. Quick enough for the event loop."""
        return self._is_here(digest)

    def awaits(self, digest: Digest) -> bool:
        """Whether this process has it under way, for whichever repository."""
        return self._shelf.flights.under_way(digest)

    async def read(self, digest: Digest, limit: int) -> bytes:
        """A small blob whole. Raises like `fetch`, and `BlobDamaged` above `limit` bytes."""
        await self.fetch(digest, lambda received, size: None)
        return await asyncio.to_thread(self._shelf.store.read, digest, limit)

    async def indexes_naming(self, digest: Digest) -> list[Digest]:
        """The indexes of this repository that are here and name this manifest."""
        return await asyncio.to_thread(indexes_naming, self._shelf.store, self._shelf.catalog, self.repo, digest)

    async def stat_blob(self, digest: Digest) -> BlobStat:
        """What HEAD tells. Starts no fill: a client that only looks must not cost a download."""
        granted = await self._granted(digest)
        try:
            here = self._shelf.store.stat(digest).size if granted is not None else None
        except BlobUnknown:
            here = None
        if here is not None and granted in (-1, here):
            self._shelf.touch(digest)
            return BlobStat(here, Outcome.HIT, self._upstream.name)
        if granted is not None and granted >= 0:
            return BlobStat(granted, Outcome.MISS, self._upstream.name)
        said = await self._shelf.memo.get(self._size_key(digest))
        size = await self._ask(digest) if granted is None or said is MISSING else said
        return BlobStat(size, Outcome.MISS, self._upstream.name)

    async def _granted(self, digest: Digest) -> int | None:
        """The size in bytes that the blob has, -1 where unknown; None: this repository may not serve it.

        A manifest says it, or that the blob was here once: its digest was right. Upstream's word counts for nothing.
        """
        granted = await self._shelf.grants.size(self.repo, digest)
        if granted is None or granted >= 0:
            return granted
        record = None
        with suppress(IndexUnavailable):
            record = await self._shelf.index.get(digest)
        if record is None:
            return -1
        await self._shelf.grants.give(self.repo, {digest: record.size})
        return record.size

    async def _blob_without_grant(self, digest: Digest) -> BlobContent:
        """Upstream must answer for this blob in this repository, by the fill itself where there is one to be made."""
        if self._is_here(digest):
            await self._ask(digest)
            return await self.blob(digest)
        content = await self._fly(digest, -1)
        try:
            if await self._shelf.grants.size(self.repo, digest) is None:
                # the flight was begun for another repository, whose rights are not ours
                await self._ask(digest)
        except BaseException:
            content.close()
            raise
        return content

    async def _fly(self, digest: Digest, granted: int) -> BlobContent:
        key = f"blob {self.repo}@{digest}"
        if await self._shelf.memo.get(key) is not MISSING:
            raise BlobUnknown(f"{self.repo} has no blob {digest}")
        size = granted if granted >= 0 else None
        joined = self._shelf.flights.under_way(digest)

        def pull(start: int) -> AbstractAsyncContextManager[Body]:
            return self._upstream.blob(self.repo.name, digest, start)

        try:
            flight = await self._shelf.flights.join(
                digest,
                pull,
                upstream=self._upstream.name,
                size=size,
                vouch=self._vouch(digest) if size is None else None,
                on_behalf=self.repo,
            )
        except StoreError as error:
            self._shelf.went_uncached(error, digest)
            if granted < 0:
                size = await self._ask(digest)
            return PassingContent(digest, size, self._passing(digest))
        except UpstreamNotKnown as error:
            await self._shelf.memo.put(key, "unknown", _UNKNOWN_FOR)
            raise BlobUnknown(f"{self.repo} has no blob {digest}") from error
        outcome = Outcome.HIT if flight.landed else Outcome.JOINED if joined else Outcome.MISS
        return FlyingContent(flight, self._passing(digest), outcome)

    def _vouch(self, digest: Digest) -> Vouch:
        async def vouch(size: int | None) -> None:
            await self._upstream_has(digest, size)

        return vouch

    async def _upstream_has(self, digest: Digest, size: int | None) -> None:
        """Upstream has answered for this blob: that is the right to it. Its size is only good enough for a HEAD: held
        against later answers, one wrong one would keep the blob from ever being fetched.
        """
        await self._shelf.grants.give(self.repo, {digest: -1})
        await self._shelf.memo.put(self._size_key(digest), size, _LIST_FOR)

    def _size_key(self, digest: Digest) -> str:
        return f"size {self.repo}@{digest}"

    def _passing(self, digest: Digest) -> Passing:
        return Passing(
            digest,
            self._upstream.name,
            lambda start: self._upstream.blob(self.repo.name, digest, start),
            self._shelf.executor,
        )

    async def _ask(self, digest: Digest) -> int | None:
        """Upstream's word that this repository has the blob; raises `BlobUnknown` where it has not."""

        async def ask() -> int | None:
            try:
                size = await self._upstream.blob_size(self.repo.name, digest)
            except UpstreamNotKnown as error:
                await self._shelf.memo.put(key, "unknown", _UNKNOWN_FOR)
                raise BlobUnknown(f"{self.repo} has no blob {digest}") from error
            await self._upstream_has(digest, size)
            return size

        key = f"blob {self.repo}@{digest}"
        if await self._shelf.memo.get(key) is not MISSING:
            raise BlobUnknown(f"{self.repo} has no blob {digest}")
        return await self._shelf.once.run(("ask", self.repo, digest), ask)

    def _is_here(self, digest: Digest) -> bool:
        try:
            self._shelf.store.stat(digest)
        except BlobUnknown:
            return False
        return True

    # ------------------------------------------------------------------------------------ tags, referrers

    async def tags(self) -> Listing:
        """All tags of upstream, sorted; while it is down, those that were pulled. Raises `UpstreamError`."""
        try:
            found = await self._shelf.memo.share(
                f"tags {self.repo}", lambda: self._upstream.tags(self.repo.name), _LIST_FOR
            )
        except (UpstreamUnavailable, UpstreamThrottled):
            kept = await asyncio.to_thread(self._shelf.catalog.tags, self.repo)
            if not kept:
                raise
            return Listing(tuple(kept), Outcome.STALE, self._upstream.name)
        return Listing(tuple(sorted(set(found))), Outcome.NONE, self._upstream.name)

    async def referrers(self, digest: Digest) -> Listing:
        """Descriptors of manifests whose subject is `digest`; while upstream is down, of those that were pulled."""

        async def ask() -> list[dict[str, Any]]:
            return [found.to_json() for found in await self._upstream.referrers(self.repo.name, digest)]

        try:
            found = await self._shelf.memo.share(f"referrers {self.repo}@{digest}", ask, _LIST_FOR)
        except (UpstreamUnavailable, UpstreamThrottled):
            kept = await self._shelf.referring.to(self.repo, digest)
            if not kept:
                # an empty list would say that there are none, such as no signatures
                raise
            return Listing(tuple(kept), Outcome.STALE, self._upstream.name)
        return Listing(tuple(read_descriptor(item) for item in found), Outcome.NONE, self._upstream.name)
