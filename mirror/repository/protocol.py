"""What can be done with a repository, verb by verb. A repository has the verbs that it can do, and no others.

    Readable     what clients may ask of any repository         sealed, proxied, both guarded
    Fetchable    what is not here can be brought here           proxied, also guarded

A caller that wants to fetch asks `isinstance(repository, Fetchable)`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from mirror.fills.read_ahead import Fetching
from mirror.oci.digest import Digest
from mirror.oci.reference import Reference, Repo
from mirror.repository.answers import BlobContent, BlobStat, Listing, ManifestAnswer


class Readable(Protocol):
    """A repository as clients and the sync may read it. Every call may raise `Denied` if rules apply to it."""

    repo: Repo

    async def manifest(self, reference: Reference) -> ManifestAnswer:
        """Returns an answer with the manifest itself. Raises `ManifestUnknown`, `UpstreamError`, `StoreError`."""

    async def resolve(self, reference: Reference) -> ManifestAnswer:
        """Returns the answer to HEAD of a manifest. Raises like `manifest`."""

    async def blob(self, digest: Digest) -> BlobContent:
        """Returns the blob, from its first byte on. The caller closes it. Raises `BlobUnknown`, `UpstreamError`,
        `StoreError`.
        """

    async def stat_blob(self, digest: Digest) -> BlobStat:
        """Returns the answer to HEAD of a blob. Raises like `blob`."""

    async def read(self, digest: Digest, limit: int) -> bytes:
        """Returns the whole content of a small blob. Raises like `blob`, and `BlobDamaged` above `limit` bytes."""

    async def tags(self, last: str, count: int) -> Listing:
        """Returns up to `count` tags after `last`, sorted. Raises `NameUnknown`, `UpstreamError`, `StoreError`."""

    async def referrers(self, digest: Digest) -> Listing:
        """Returns descriptors of the manifests whose subject is `digest`. Raises like `tags`."""

    def has(self, digest: Digest) -> bool:
        """True if the store has the content, from any repository. Fast enough for the event loop."""


@runtime_checkable
class Fetchable(Protocol):
    """A repository with an upstream, from which it can fetch what is not here."""

    async def fetch(self, digest: Digest, progress: Callable[[int, int | None], None]) -> bool:
        """Fetches the blob into the store. False if it was there already. Raises `BlobUnknown`, `UpstreamError`,
        `StoreError`.

        `progress` is called with the number of bytes received so far and the blob's size (None: unknown).
        """

    async def fetch_manifest(self, reference: Reference) -> ManifestAnswer:
        """Returns the manifest once it and its tag are on the disk (durable after `settled`). Raises
        `ManifestUnknown`, `UpstreamError`, `StoreError`.
        """

    def fetch_ahead(self, answer: ManifestAnswer, through: Fetching | None = None) -> None:
        """Call it after a manifest was fetched (`Outcome.MISS`) and sent to a client: its blobs may then be fetched
        ahead, through a guarded repository if one stands before this one. Returns at once.
        """

    def is_fetching(self, digest: Digest) -> bool:
        """True if this process is fetching the blob, for any repository of the registry."""

    async def settled(self) -> None:
        """Returns once all that was fetched before this call is durable. Raises `StoreError`."""
