"""The referrers of a manifest among the manifests that a repository has here (distribution-spec, "Listing Referrers").

The manifests of a repository are listed at most once every few seconds, and each is read only once to learn its
subject: its bytes never change. What a page of the list shows is read for that page: annotations may be megabytes.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from mirror.aio.caches import LruCache
from mirror.aio.singleflight import SingleFlight
from mirror.graph.damage import manifest_to_serve
from mirror.graph.walk import damaged_may_be_missing, walk
from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor, Manifest
from mirror.oci.reference import Repo
from mirror.oci.referrer_pages import ReferrersPage, first_page
from mirror.ports import BlobStore, Catalog

#: Seconds for which the result of a scan is used.
_READ_EVERY: Final = 2.0

#: For each manifest: its subject, if it has one.
_Seen = Mapping[Digest, tuple[Digest | None]]


class ReferrerScan:
    """The referrers in all repositories, as this process has read them."""

    def __init__(self, store: BlobStore, catalog: Catalog, once: SingleFlight, now: Callable[[], float]) -> None:
        self._store = store
        self._catalog = catalog
        self._once = once
        self._now = now
        self._read: LruCache[Repo, tuple[float, _Seen]] = LruCache(
            32 << 20, lambda read: 512 + 512 * len(read[1]), name="referrers"
        )

    def __repr__(self) -> str:
        return f"<ReferrerScan {self._read}>"

    async def to(self, repo: Repo, digest: Digest, after: Digest | None = None) -> ReferrersPage | None:
        """Returns a page of the descriptors of the manifests whose subject is `digest`, sorted by digest, those after
        `after`; None if the repository has no manifest here at all.

        Raises `StoreError` if a manifest cannot be read: a list without it would claim that there is no signature.
        """
        read = self._read.get(repo)
        if read is None or not read[0] <= self._now() < read[0] + _READ_EVERY:
            before = read[1] if read else {}
            seen = await self._once.run(("referring", repo), lambda: asyncio.to_thread(self._from_disk, repo, before))
            read = self._now(), seen
            self._read[repo] = read
        if not read[1]:
            return None
        names = [each for each, (subject,) in read[1].items() if subject == digest and (after is None or each > after)]
        if not names:
            return ReferrersPage()
        key = "referrers", repo, digest, after
        return await self._once.run(key, lambda: asyncio.to_thread(self._page, repo, sorted(names)))

    def _page(self, repo: Repo, names: Sequence[Digest]) -> ReferrersPage:
        found = (manifest_to_serve(self._store, self._catalog, repo, digest) for digest in names)
        return first_page(referrer_descriptor(stored.manifest) for stored in found if stored is not None)

    def _from_disk(self, repo: Repo, before: _Seen) -> _Seen:
        def read(repo: Repo, digest: Digest) -> tuple[Digest | None] | None:
            return before.get(digest) or self._read_subject(repo, digest)

        return {digest: seen for _, digest, seen in walk(self._catalog, read, damaged_may_be_missing, [repo])}

    def _read_subject(self, repo: Repo, digest: Digest) -> tuple[Digest | None] | None:
        stored = manifest_to_serve(self._store, self._catalog, repo, digest)
        if stored is None:
            return None
        subject = stored.manifest.subject
        return (None if subject is None else subject.digest,)


def referrer_descriptor(manifest: Manifest) -> Descriptor:
    """Returns the descriptor of a manifest as a list of referrers has it: with artifact type and annotations
    (distribution-spec, "Listing Referrers").
    """
    return replace(manifest.descriptor, annotations=_annotations(manifest))


def _annotations(manifest: Manifest) -> dict[str, str]:
    """Returns the annotations of a manifest. A referrers list repeats them: signatures and attestations say there what
    they are.
    """
    annotations = json.loads(manifest.content).get("annotations")
    if not isinstance(annotations, dict):
        return {}
    return {key: value for key, value in annotations.items() if isinstance(value, str)}
