"""What clients may pull from a hosted repository. It has no upstream: the records on the disk are all there is.

    manifest by tag      the tag's record, unless its manifest has no record ──> by digest
    manifest by digest   the manifest's record ──> its bytes
    blob                 the repository's link, in force ──> the bytes
    referrers            the entries of the subject, and those of the referrers tag

That bytes are on the disk gives no right to them. Damaged content is unknown, so that a push repairs it. A damaged
record of a manifest gives the right all the same: its name is the manifest's digest, and the bytes say the rest.
"""

from __future__ import annotations

from concurrent.futures import Executor
from functools import partial
from typing import Any, Final

from mirror.aio.bounded_threads import in_thread
from mirror.errors import (
    BlobDamaged,
    BlobUnknown,
    BlobUnreadable,
    ManifestUnknown,
    NameUnknown,
    RecordDamaged,
    StoreError,
)
from mirror.graph.damage import bytes_to_serve, indexes_naming
from mirror.graph.manifests import has_blob
from mirror.graph.referrers import referrer_descriptor
from mirror.hosting.damaged_records import has_manifest, manifest_or_remade
from mirror.hosting.links import Links
from mirror.hosting.parts import PulledParts
from mirror.hosting.remembered import Remembered, Remembrance
from mirror.intake.integrity import Integrity
from mirror.oci.attachments import referrers_tag
from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor, Manifest
from mirror.oci.reference import Reference, Repo
from mirror.oci.referrer_pages import ReferrersPage, first_page
from mirror.policy.hosted_records import BlobLink, LinkState
from mirror.policy.records import ManifestRecord
from mirror.ports import BlobInfo, BlobObject, BlobReader, Look
from mirror.repository.answers import BlobContent, BlobStat, Listing, ManifestAnswer, Outcome, StoredContent, no_stream
from mirror.repository.caches import CachedTag, Caches
from mirror.repository.copied_blobs import CopiedBlobs
from mirror.repository.standing.in_memory import InMemory
from mirror.repository.standing.lasting import Standing
from mirror.repository.standing.on_disk import OnDisk, opened_and_closed
from mirror.repository.standing.recorded import Recorded

#: Repositories have few links that are used often, and clients may ask for any number of others.
_MOST_RECORDS: Final = 100_000
#: Bytes of memory for the lists of tags and of referrers.
_MOST_LISTED: Final = 32 << 20


class HostedMemory:
    """What this process remembers of all hosted repositories."""

    def __init__(self, parts: PulledParts, caches: Caches) -> None:
        changes, once, now, threads = parts.records.changes, caches.once, caches.now, parts.threads
        self.links: Remembered[Digest, BlobLink | None] = Remembered(
            "hosted links", changes, once, now, most=_MOST_RECORDS, threads=threads
        )
        self.manifests: Remembered[Digest, ManifestRecord | None] = Remembered(
            "hosted manifests", changes, once, now, most=_MOST_RECORDS, threads=threads
        )
        self.tags: Remembered[str, CachedTag | None] = Remembered(
            "hosted tags", changes, once, now, most=_MOST_RECORDS, threads=threads
        )
        self.tag_lists: Remembered[str, tuple[str, ...] | None] = Remembered(
            "hosted tag lists",
            changes,
            once,
            now,
            most=_MOST_LISTED,
            threads=threads,
            weight=lambda tags: 512 + 128 * len(tags or ()),
        )
        self.referrers: Remembered[tuple[Digest, Digest | None], ReferrersPage] = Remembered(
            "hosted referrers",
            changes,
            once,
            now,
            most=_MOST_LISTED,
            threads=threads,
            weight=lambda page: 1024 + 2048 * len(page.items) + 2 * page.size,
        )

    def __repr__(self) -> str:
        return f"<HostedMemory {self.links!r} {self.manifests!r}>"


class HostedContent:
    """One hosted repository as clients read it: `Readable`. Cheap to make: it keeps no state of its own."""

    def __init__(
        self,
        repo: Repo,
        parts: PulledParts,
        links: Links,
        memory: HostedMemory,
        caches: Caches,
        integrity: Integrity,
        executor: Executor,
        copied: CopiedBlobs | None = None,
    ) -> None:
        """`links` are read where what is remembered does not do; `integrity` checks the bytes of hosted blobs;
        `executor` runs the threads that read blobs. `copied` reads them if they are in a bucket; None if they are on
        the disk.
        """
        self.repo = repo
        self._parts = parts
        self._links = links
        self._memory = memory
        self._caches = caches
        self._integrity = integrity
        self._executor = executor
        self._copied = copied

    def __repr__(self) -> str:
        return f"<HostedContent {self.repo}>"

    # ----------------------------------------------------------------------------------------------------- manifests

    async def manifest(self, reference: Reference) -> ManifestAnswer:
        """Returns an answer with the manifest itself. Raises `ManifestUnknown`, `StoreError`."""
        # one look for both records
        look = Look.COUNTS if self._parts.look is None else await self._parts.look(self.repo)
        tag = None if isinstance(reference, Digest) else await self._tag(reference, look=look)
        digest = reference if isinstance(reference, Digest) else tag.record.digest if tag else None
        manifest = await self._manifest(digest, look=look) if digest else None
        if manifest is None:
            joint = "@" if isinstance(reference, Digest) else ":"
            raise ManifestUnknown(f"{self.repo}{joint}{reference} does not exist")
        return ManifestAnswer.of(manifest, _outcome(look), self.repo.registry, tag.override if tag else None)

    async def resolve(self, reference: Reference) -> ManifestAnswer:
        """Returns the same answer as `manifest`: HEAD succeeds only if GET would. Raises like `manifest`."""
        return await self.manifest(reference)

    def manifest_stands(self, reference: Reference, answer: ManifestAnswer, *, head: bool) -> Standing | None:
        """See `Lasting`. If the records or the bytes are in a bucket, only asking again can tell."""
        if self._parts.look is not None or self._copied is not None:
            return None
        record = self._memory.manifests.remembrance(self.repo, answer.digest)
        if record is None or record.record is None:
            return None
        records: tuple[Remembrance[Any], ...] = (record,)
        if isinstance(reference, str):
            tag = self._memory.tags.remembrance(self.repo, reference)
            if tag is None or tag.record is None or tag.count != record.count:
                return None
            if tag.record.record.digest != answer.digest or tag.record.override is not answer.override:
                return None
            records += (tag,)
        # of the manifest alone: the caches have no tags of hosted repositories
        besides = InMemory.of(self._caches, self.repo, answer.digest, answer, _no_use, checked=False)
        return None if besides is None else Recorded(records, besides)

    def blob_stands(self, digest: Digest, answer: BlobStat) -> Standing | None:
        """See `Lasting`."""
        if self._parts.look is not None or self._copied is not None or answer.size is None:
            return None
        link = self._memory.links.remembrance(self.repo, digest)
        if link is None or link.record is None or link.record.state is not LinkState.LINKED:
            return None
        if answer.outcome is not Outcome.HIT or link.record.size != answer.size:
            return None
        look, now = partial(opened_and_closed, self._parts.contents.open), self._caches.now
        return Recorded((link,), OnDisk(digest, answer.size, look, now, now(), _no_use))

    async def has_tag(self, tag: str) -> bool:
        """True if the tag points to a manifest that has a record here, also if its bytes are damaged or missing. Raises
        `StoreError`.
        """
        look = Look.COUNTS if self._parts.look is None else await self._parts.look(self.repo)
        found = await self._tag(tag, look=look)
        return found is not None and await self._record(found.record.digest, look=look) is not None

    async def _record(self, digest: Digest, *, look: Look) -> ManifestRecord | None:
        return await self._memory.manifests.get(self.repo, digest, lambda: self._read_record(digest), look=look)

    async def _tag(self, tag: str, *, look: Look) -> CachedTag | None:
        return await self._memory.tags.get(self.repo, tag, lambda: self._read_tag(tag), look=look)

    def _read_tag(self, tag: str) -> CachedTag | None:
        """Blocking: returns what a tag answers; None if it is absent. A freeze overrides the record. Raises
        `StoreError` if one of the two cannot be read.
        """
        now = self._caches.now()
        if freeze := self._parts.histories.frozen(self.repo, tag):
            return CachedTag.frozen(freeze, now)
        record = self._parts.catalog.get_tag(self.repo, tag)
        return CachedTag(record, Outcome.HIT, now, now) if record else None

    async def _manifest(self, digest: Digest, *, look: Look) -> Manifest | None:
        if await self._record(digest, look=look) is None:
            return None
        manifest = self._caches.manifests.get((self.repo, digest))
        if manifest is None:
            key = "hosted manifest", self.repo, digest
            manifest = await self._caches.once.run(
                key, lambda: in_thread(self._parts.threads, self._read_manifest, digest)
            )
            if manifest is not None:
                self._caches.manifests[self.repo, digest] = manifest
                if self._copied is not None:
                    self._copied.named(manifest)
        if self._copied is not None:
            self._copied.touch(digest)
        return manifest

    def _read_record(self, digest: Digest) -> ManifestRecord | None:
        found = manifest_or_remade(self._parts, self.repo, digest)
        return found.record if found else None

    def _read_manifest(self, digest: Digest) -> Manifest | None:
        record = self._read_record(digest)
        return bytes_to_serve(self._parts.contents, digest, record.media_type) if record else None

    async def indexes_naming(self, digest: Digest) -> list[Digest]:
        """Returns the indexes of this repository that name this manifest. Raises `StoreError`."""
        parts = self._parts
        return await in_thread(parts.threads, indexes_naming, parts.contents, parts.catalog, self.repo, digest)

    # --------------------------------------------------------------------------------------------------------- blobs

    async def blob(self, digest: Digest) -> BlobContent:
        """Returns the blob. The caller closes it. Raises `BlobUnknown`, `StoreError`."""
        return await self.content(await self._linked(digest))

    async def _linked(self, digest: Digest) -> BlobLink:
        link = await self.link(digest)
        if link is None or link.state is not LinkState.LINKED:
            raise self._unknown(digest)
        return link

    async def link(self, digest: Digest) -> BlobLink | None:
        """Returns the repository's link to a blob, whatever its state; None if it has none."""
        look = Look.COUNTS if self._parts.look is None else await self._parts.look(self.repo)
        return await self._memory.links.get(self.repo, digest, lambda: self._read_link(digest), look=look)

    def _read_link(self, digest: Digest) -> BlobLink | None:
        found = self._parts.records.link(self.repo, digest)
        return found.record if found else None

    async def content(self, link: BlobLink) -> BlobContent:
        """Returns the blob of a link that the caller may use. Raises `BlobUnknown` if its bytes are not here."""
        if self._copied is not None:
            return await self._copied.content(self.repo, link)
        info, reader = await self._open(link)
        stream = no_stream(link.digest, self.repo.registry, self._executor, "a hosted repository has no upstream")
        return StoredContent(link.digest, info.size, reader, stream, self._integrity.recheck_later)

    async def _open(self, link: BlobLink) -> tuple[BlobInfo, BlobReader]:
        try:
            info, reader = self._parts.contents.open(link.digest)
        except BlobUnknown:
            raise self._unknown(link.digest) from None
        except BlobUnreadable:
            await self._integrity.set_aside(link.digest)
            raise
        try:
            await self._integrity.check(info, link.size)
        except BlobDamaged:
            reader.close()
            await self._integrity.set_aside(link.digest)
            raise self._unknown(link.digest) from None
        except BaseException:
            reader.close()
            raise
        return info, reader

    async def blob_object(self, digest: Digest) -> BlobObject | None:
        """See `InBucket`."""
        return (
            None if self._copied is None else await in_thread(self._parts.threads, self._object, digest, self._copied)
        )

    def _object(self, digest: Digest, copied: CopiedBlobs) -> BlobObject | None:
        """Blocking. The link is read now: what is remembered of it could outlive a deletion by the life of a URL."""
        link = self._links.find(self.repo, digest)
        return copied.certain_object(link) if link is not None and link.state is LinkState.LINKED else None

    async def stat_blob(self, digest: Digest) -> BlobStat:
        """Returns the answer to HEAD, which succeeds only if GET would. Raises like `blob`."""
        link = await self._linked(digest)
        if self._copied is not None:
            return await self._copied.stat(self.repo, link)
        content = await self.content(link)
        content.close()
        return BlobStat(content.size, Outcome.HIT, self.repo.registry)

    async def read(self, digest: Digest, limit: int) -> bytes:
        """Returns the whole content of a small blob. Raises like `blob`, and `BlobDamaged` above `limit` bytes."""
        await self.stat_blob(digest)
        return await in_thread(self._parts.threads, self._parts.contents.read, digest, limit)

    def has(self, digest: Digest) -> bool:
        """True if the disk has the content, from any repository. Fast enough for the event loop."""
        if self._copied is not None:
            return self._copied.has(digest)
        try:
            return has_blob(self._parts.contents, digest)
        except StoreError:
            return False

    def _unknown(self, digest: Digest) -> BlobUnknown:
        return BlobUnknown(f"{self.repo} has no blob {digest}")

    # ------------------------------------------------------------------------------------------------ tags, referrers

    async def tags(self, last: str, count: int) -> Listing:
        """Returns up to `count` tags after `last`. Raises `NameUnknown` if the repository has nothing."""
        look = Look.COUNTS if self._parts.look is None else await self._parts.look(self.repo)
        tags = await self._memory.tag_lists.get(self.repo, "", self._read_tags, look=look)
        if tags is None:
            raise NameUnknown(f"{self.repo} does not exist")
        return Listing.page(tags, last, count, _outcome(look), self.repo.registry)

    def _read_tags(self) -> tuple[str, ...] | None:
        """Blocking: returns the tags, without those that an interrupted deletion has left; None if the repository has
        no tag, manifest or blob.
        """
        catalog, records = self._parts.catalog, self._parts.records
        tags = catalog.tags(self.repo)
        if not tags:
            listings = catalog.manifest_digests(self.repo), records.linked(self.repo)
            return () if any(True for listed in listings for _ in listed) else None
        stale: set[str] = set()
        for digest in records.deleted_manifests(self.repo):
            if has_manifest(catalog, self.repo, digest):
                continue
            try:
                deleted = records.deleted_manifest(self.repo, digest)
                had = deleted.record.tags if deleted else ()
            except RecordDamaged:
                had = tuple(tags)
            stale.update(tag for tag in had if self._points_to(tag, digest))
        return tuple(tag for tag in tags if tag not in stale)

    def _points_to(self, tag: str, digest: Digest) -> bool:
        """Blocking: False if the tag's record is damaged: such a tag is listed."""
        try:
            record = self._parts.catalog.get_tag(self.repo, tag)
        except RecordDamaged:
            return False
        return record is not None and record.digest == digest

    async def referrers(self, digest: Digest, after: Digest | None = None) -> Listing:
        """Returns a page of the referrers of a manifest, which may be absent. Raises `StoreError`."""
        look = Look.COUNTS if self._parts.look is None else await self._parts.look(self.repo)
        page = await self._memory.referrers.get(
            self.repo, (digest, after), lambda: self._read_referrers(digest, after), look=look
        )
        return Listing(page.items, _outcome(look), self.repo.registry, page.more)

    def _read_referrers(self, subject: Digest, after: Digest | None) -> ReferrersPage:
        """Blocking: returns the manifests here whose subject this is, and those that clients which do not know the API
        have listed under the referrers tag (distribution-spec, "Referrers Tag Schema").
        """
        catalog = self._parts.catalog
        entries = frozenset(self._parts.records.referrer_digests(self.repo, subject))
        tag = catalog.get_tag(self.repo, referrers_tag(subject))
        index = self._read_manifest(tag.digest) if tag else None
        listed = {each.digest: each for each in index.manifests} if index is not None and index.is_index else {}

        def read(digest: Digest) -> Descriptor | None:
            found = None
            if digest in entries and has_manifest(catalog, self.repo, digest):
                found = self._read_entry(subject, digest)
            return found or listed.get(digest)

        names = (digest for digest in entries | listed.keys() if after is None or digest > after)
        return first_page(filter(None, map(read, sorted(names))))

    def _read_entry(self, subject: Digest, digest: Digest) -> Descriptor | None:
        """Blocking: one entry of a subject. If it is damaged, the manifest says what is in it."""
        try:
            return self._parts.records.referrer(self.repo, subject, digest)
        except RecordDamaged:
            manifest = self._read_manifest(digest)
            return None if manifest is None else referrer_descriptor(manifest)


def _outcome(look: Look) -> Outcome:
    return Outcome.LAST_SEEN if look is Look.OLD else Outcome.HIT


def _no_use(_digest: Digest) -> None:
    """No eviction asks when hosted content on the disk was used."""
