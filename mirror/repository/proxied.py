"""A repository of an upstream registry: content in the store is served from there, the rest is fetched.

manifests   proxied_manifests.py     tags that manifests are pulled by   tag_answers.py
blobs       proxied_blobs.py         lists of tags                       tag_pages.py
"""

from __future__ import annotations

import asyncio
import heapq
from contextlib import aclosing, suppress
from typing import Any, Final

from mirror.caller import caller_key
from mirror.errors import BlobUnknown, ManifestUnknown, UpstreamNotFound, UpstreamThrottled, UpstreamUnavailable
from mirror.fills.read_ahead import Fetching, ReadAhead
from mirror.intake.intake import Intake
from mirror.oci.digest import Digest
from mirror.oci.manifest import is_manifest_type, read_descriptor
from mirror.oci.reference import Reference
from mirror.oci.referrer_pages import ReferrersPage, page_of
from mirror.oci.request import Kind
from mirror.policy.records import ManifestRecord
from mirror.ports import Upstream
from mirror.repository.answers import Listing, ManifestAnswer, Outcome
from mirror.repository.caches import Caches
from mirror.repository.proxied_blobs import ProxiedBlobs
from mirror.repository.proxied_manifests import ProxiedManifests
from mirror.repository.questions import Questions
from mirror.repository.stored import StoredRepository
from mirror.repository.tag_pages import LIST_FOR, TagPages

#: Manifests that upstream is asked for, one after the other, until it has one of them.
_PROOFS: Final = 3
#: Referrers that are read on the event loop.
_FEW: Final = 200


class ProxiedRepository:
    """One repository of one upstream. Cheap to make: it keeps no state of its own."""

    def __init__(
        self,
        stored: StoredRepository,
        upstream: Upstream,
        manifests: ProxiedManifests,
        blobs: ProxiedBlobs,
        pages: TagPages,
        caches: Caches,
        questions: Questions,
        intake: Intake,
        ahead: ReadAhead | None,
    ) -> None:
        """`ahead` fetches the blobs of fetched manifests; None if the route does not want that."""
        self.repo = stored.repo
        self._stored = stored
        self._upstream = upstream
        self._pages = pages
        self._caches = caches
        self._questions = questions
        self._intake = intake
        self._ahead = ahead
        # the two halves answer themselves, without a call in between
        self.manifest = manifests.manifest
        self.resolve = manifests.resolve
        self.fetch_manifest = manifests.fetch_manifest
        self.blob = blobs.blob
        self.stat_blob = blobs.stat_blob
        self.blob_object = blobs.blob_object
        self.manifest_stands = manifests.manifest_stands
        self.blob_stands = blobs.blob_stands
        self.blob_parts = blobs.blob_parts
        self.resume_parts = blobs.resume_parts
        self.read = blobs.read
        self.fetch = blobs.fetch
        self.is_fetching = blobs.is_fetching
        self.has = stored.has
        self.settled = intake.settled

    def __repr__(self) -> str:
        return f"<ProxiedRepository {self.repo}>"

    def fetch_ahead(self, answer: ManifestAnswer, through: Fetching | None = None) -> None:
        """Begins to fetch the blobs of a manifest that was fetched and sent to a client, before the client asks for
        them. Returns at once.
        """
        # while the store is failing, each blob fetched ahead would be fetched twice
        if self._ahead and not self._intake.health.is_failing:
            manifest = self._caches.manifests.get((self.repo, answer.digest))
            if manifest:
                self._ahead.begin(through or self, manifest)

    async def prove(self, kind: Kind, reference: Reference | None) -> None:
        """Returns if upstream, asked now, gives the content to the current caller. No remembered answer is used.

        Raises `UpstreamDenied`, `ManifestUnknown`, `BlobUnknown`, `UpstreamError`, and `StoreError`.
        """
        name = self.repo.name
        try:
            if kind is Kind.MANIFEST and reference is not None:
                await self._upstream.resolve(name, reference)
                return
            for record in await asyncio.to_thread(self._some_manifests):
                with suppress(UpstreamNotFound):
                    # HEAD costs nothing; a caller who may have one manifest may have all of the repository
                    await self._upstream.resolve(name, record.digest)
                    return
            if kind is Kind.BLOB and isinstance(reference, Digest):
                await self._upstream.blob_size(name, reference)
            else:
                async with aclosing(self._upstream.tags(name)) as batches:
                    await anext(batches)
        except UpstreamNotFound as error:
            unknown = BlobUnknown if kind is Kind.BLOB else ManifestUnknown
            raise unknown(f"{self.repo} has no {reference}") from error

    def _some_manifests(self) -> list[ManifestRecord]:
        """Blocking: returns the stored manifests that were fetched last. Raises `StoreError`."""
        records = self._stored.catalog.manifests(self.repo)
        return heapq.nlargest(_PROOFS, records, key=lambda record: record.fetched_at)

    async def tags(self, last: str, count: int) -> Listing:
        """Returns up to `count` of upstream's tags after `last`, sorted. While upstream is down, the tags that were
        pulled are listed instead. Raises `UpstreamError`, `StoreError`.
        """
        try:
            page = await self._pages.page(last, count)
        except (UpstreamUnavailable, UpstreamThrottled):
            pulled = await self._stored.tags()
            if not pulled:
                raise
            return Listing.page(pulled, last, count, Outcome.STALE, self._upstream.name)
        return Listing(page.tags, Outcome.NONE, self._upstream.name, page.more)

    async def referrers(self, digest: Digest, after: Digest | None = None) -> Listing:
        """Returns a page of the manifests whose subject is `digest`. While upstream is down, those that were pulled are
        listed instead. Raises `UpstreamError`, `StoreError`.
        """

        async def ask() -> list[dict[str, Any]]:
            referrers = await self._upstream.referrers(self.repo.name, digest)
            # a descriptor whose media type is not a manifest's could not be pulled from here
            return [each.to_json() for each in referrers if not each.media_type or is_manifest_type(each.media_type)]

        try:
            key = caller_key(f"referrers {self.repo}@{digest}")
            answer = await self._questions.memo.share(key, ask, LIST_FOR)
        except (UpstreamUnavailable, UpstreamThrottled):
            pulled = await self._stored.referrers(digest, after)
            if pulled is None or not (pulled.items or after):
                # an empty list would claim that there are no referrers, such as signatures
                raise
            return Listing(pulled.items, Outcome.STALE, self._upstream.name, pulled.more)

        def page() -> ReferrersPage:
            return page_of([read_descriptor(item) for item in answer], after)

        # of thousands, this takes a tenth of a second
        found = page() if len(answer) <= _FEW else await asyncio.to_thread(page)
        return Listing(found.items, Outcome.NONE, self._upstream.name, found.more)
