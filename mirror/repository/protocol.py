"""What can be asked of a repository, wherever its content comes from: proxied, sealed, guarded by rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from mirror.fills.read_ahead import Fetching
from mirror.oci.digest import Digest
from mirror.oci.reference import Reference, Repo
from mirror.oci.request import Kind
from mirror.repository.content import BlobContent, ManifestAnswer
from mirror.repository.shared import BlobStat, Listing

__all__ = ["PlainRepository", "Repository"]


class Repository(Protocol):
    """As clients may see it, and who warms the cache. Every call may raise `Denied` where there are rules."""

    repo: Repo

    async def manifest(self, reference: Reference) -> ManifestAnswer:
        """The manifest itself. Raises `ManifestUnknown`, `UpstreamError`."""

    async def resolve(self, reference: Reference) -> ManifestAnswer:
        """What HEAD of a manifest tells. Raises like `manifest`."""

    async def blob(self, digest: Digest) -> BlobContent:
        """The blob, from its first byte on. The caller closes it. Raises `BlobUnknown`, `UpstreamError`."""

    async def fetch(self, digest: Digest, progress: Callable[[int, int | None], None]) -> bool:
        """Have the blob here, with nobody to send it to; False: it was here already. Raises like `blob`, `StoreError`.

        `progress` is told how many bytes are here and how many there will be (None: unknown).
        """

    async def fetch_manifest(self, reference: Reference) -> ManifestAnswer:
        """Have the manifest on the disk, its tag too. Raises like `manifest`, `StoreError`."""

    def fetch_ahead(self, answer: ManifestAnswer) -> None:
        """A client was given this: its blobs may be fetched before they are asked for. Returns at once."""

    async def read(self, digest: Digest, limit: int) -> bytes:
        """A small blob whole. Raises like `fetch`, and `BlobDamaged` above `limit` bytes."""

    async def settled(self) -> None:
        """What was fetched so far outlives a power cut when this returns. Raises `StoreError`."""

    def holds(self, digest: Digest) -> bool:
        """Whether its bytes are here, for whichever repository. Quick enough for the event loop."""

    def awaits(self, digest: Digest) -> bool:
        """Whether this process has it under way, for whichever repository."""

    async def stat_blob(self, digest: Digest) -> BlobStat:
        """What HEAD of a blob tells. Raises like `blob`."""

    async def prove(self, kind: Kind, reference: Reference | None) -> None:
        """Returns where upstream, asked now, gives what is meant to whoever we act for; nothing remembered counts.

        Raises `UpstreamDenied`, `ManifestUnknown`, `BlobUnknown`, `UpstreamError`.
        """

    async def tags(self, last: str, count: int) -> Listing:
        """Up to `count` tags behind `last`, sorted. Raises `NameUnknown`, `UpstreamError`."""

    async def referrers(self, digest: Digest) -> Listing:
        """Descriptors of manifests whose subject is `digest`. Raises `NameUnknown`, `UpstreamError`."""


class PlainRepository(Repository, Protocol):
    """Without rules about its content; what rules are judged by can be asked besides."""

    def fetch_ahead(self, answer: ManifestAnswer, by: Fetching | None = None) -> None:
        """Through `by`, where something stands before this repository."""

    async def indexes_naming(self, digest: Digest) -> list[Digest]:
        """The indexes of this repository that are here and name this manifest. Raises `StoreError`."""
