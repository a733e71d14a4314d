"""A repository of another registry that takes copies.

A registry without the referrers API gets the list of referrers under the tag `sha256-…`, as the specification asks of
clients (distribution-spec, "Referrers Tag Schema"): read, completed, written, and read again, since another client may
do the same at that moment.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from mirror.aio.caches import LruCache
from mirror.errors import BlobUnknown, Denied, UpstreamDenied
from mirror.graph.referrers import referrer_descriptor
from mirror.oci.attachments import image_of_tag, referrers_tag
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_INDEX, Descriptor, Manifest, read_manifest
from mirror.oci.reference import Repo
from mirror.ports import BlobReader, Blobs, SentBlob, Writer
from mirror.replication.target import Given
from mirror.repository.protocol import Readable

#: Blobs of which it is remembered which repositories of the registry have them, and repositories for each.
_MOST_BLOBS: Final = 20_000
_MOST_HOLDERS: Final = 4
#: How often a list of referrers is completed if other clients write it at the same time.
_TRIES: Final = 5


class KnownBlobs:
    """Which repositories of one registry are known to have a blob, so that it can be mounted from there."""

    def __init__(self) -> None:
        self._holders: LruCache[Digest, tuple[str, ...]] = LruCache(_MOST_BLOBS, name="blobs of other registries")

    def __repr__(self) -> str:
        return f"<KnownBlobs {len(self._holders)}>"

    def note(self, name: str, digest: Digest) -> None:
        """Note that a repository has a blob."""
        holders = self._holders.get(digest) or ()
        if name not in holders:
            self._holders[digest] = (name, *holders)[:_MOST_HOLDERS]

    def holders(self, name: str, digest: Digest) -> Sequence[str]:
        """Other repositories than this one that have the blob."""
        return [holder for holder in self._holders.get(digest) or () if holder != name]


@dataclass(frozen=True, slots=True)
class RegistryTarget:
    """The repository `name` of the registry behind `writer`. `source` says which blobs its own repository may serve;
    `contents` has their bytes. `check` raises `Denied` if the caller may not do this any more; `may_move` says whether
    a tag may be moved from the first to the second of two digests. `take` is called in threads with the number of bytes
    before they are sent, and returns the seconds to wait first.
    """

    writer: Writer
    name: str
    source: Readable
    contents: Blobs
    known: KnownBlobs
    check: Callable[[], None]
    may_move: Callable[[str, Digest, Digest], bool]
    take: Callable[[int], float] = lambda count: 0.0
    _lists: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __repr__(self) -> str:
        return f"<RegistryTarget {self.repo} from {self.source.repo}>"

    @property
    def repo(self) -> Repo:
        """The repository, for messages."""
        return Repo(self.writer.name, self.name)

    async def digest_of(self, tag: str) -> Digest | None:
        """See `Target`."""
        return await self.writer.digest_of(self.name, tag)

    async def has_manifest(self, digest: Digest) -> bool:
        """See `Target`."""
        return await self.writer.has_manifest(self.name, digest)

    async def check_tag(self, tag: str, now: Digest | None, digest: Digest) -> None:
        """See `Target`. What the other registry forbids is not known here."""
        self.check()
        if now not in (None, digest) and not self.may_move(tag, now, digest):
            raise Denied(f"the tag {self.repo}:{tag} exists, and the rules do not let it be moved from {now}")

    async def give_blob(self, blob: Descriptor, progress: Callable[[int], None]) -> Given:
        """See `Target`."""
        self.check()
        stat = await self.source.stat_blob(blob.digest)
        size = blob.size if stat.size is None else stat.size
        if await self.writer.has_blob(self.name, blob.digest, size):
            self.known.note(self.name, blob.digest)
            return Given.HERE
        loop = asyncio.get_running_loop()
        sent = SentBlob(
            blob.digest,
            size,
            lambda: self._open(blob.digest),
            self.take,
            lambda count: _tell(loop, progress, count),
        )
        is_sent = await self.writer.put_blob(self.name, sent, self.known.holders(self.name, blob.digest))
        self.known.note(self.name, blob.digest)
        return Given.SENT if is_sent else Given.LINKED

    def _open(self, digest: Digest) -> BlobReader:
        try:
            return self.contents.open(digest)[1]
        except BlobUnknown as error:
            raise BlobUnknown(f"{self.source.repo} has no blob {digest} any more") from error

    async def put(self, manifest: Manifest, tag: str | None = None) -> None:
        """See `Target`. Raises `Denied` if the registry forbids it."""
        self.check()
        try:
            listed = await self.writer.put_manifest(self.name, manifest, tag or manifest.digest)
        except UpstreamDenied as error:
            if error.status != 403:
                raise
            raise Denied(f"{self.repo}: {error.public}") from error
        if manifest.subject is not None and not listed:
            await self._list(manifest.subject.digest, referrer_descriptor(manifest))

    async def attach(self, tag: str, manifest: Manifest) -> None:
        """See `Target`. A list of referrers is not copied: each referrer is listed when it is put."""
        if image_of_tag(tag) is None or (now := await self.digest_of(tag)) == manifest.digest:
            return
        await self.check_tag(tag, now, manifest.digest)
        await self.put(manifest, tag)

    async def _list(self, subject: Digest, referrer: Descriptor) -> None:
        """Completes the list of referrers of a subject, in a registry without the referrers API."""
        tag = referrers_tag(subject)
        async with self._lists:
            for _ in range(_TRIES):
                now = await self.writer.manifest(self.name, tag)
                listed = now.manifests if now is not None and now.is_index else ()
                if any(entry.digest == referrer.digest for entry in listed):
                    return
                await self.writer.put_manifest(self.name, _index_of((*listed, referrer)), tag)
        raise Denied(f"the list of referrers {self.repo}:{tag} is changed by others all the time")


def _index_of(entries: Sequence[Descriptor]) -> Manifest:
    """An index that lists these manifests."""
    body = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry.to_json() for entry in entries]}
    return read_manifest(json.dumps(body, separators=(",", ":")).encode(), OCI_INDEX)


def _tell(loop: asyncio.AbstractEventLoop, progress: Callable[[int], None], count: int) -> None:
    """Reports progress from a thread."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(progress, count)
