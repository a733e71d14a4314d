"""The interface of a repository, whether it is proxied, sealed, or guarded by rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from mirror.fills.read_ahead import Fetching
from mirror.oci.digest import Digest
from mirror.oci.reference import Reference, Repo
from mirror.oci.request import Kind
from mirror.repository.answers import BlobContent, ManifestAnswer
from mirror.repository.shared import BlobStat, Listing


class Repository(Protocol):
    """A repository as clients and the sync may see it. Every call may raise `Denied` if rules apply to it."""

    repo: Repo

    async def manifest(self, reference: Reference) -> ManifestAnswer:
        """Returns an answer with the manifest itself. Raises `ManifestUnknown`, `UpstreamError`."""

    async def resolve(self, reference: Reference) -> ManifestAnswer:
        """Returns the answer to HEAD of a manifest. Raises like `manifest`."""

    async def blob(self, digest: Digest) -> BlobContent:
        """Returns the blob, from its first byte on. The caller closes it. Raises `BlobUnknown`, `UpstreamError`."""

    async def fetch(self, digest: Digest, progress: Callable[[int, int | None], None]) -> bool:
        """Fetches the blob into the store. False if it was there already. Raises like `blob`, and `StoreError`.

        `progress` is called with the number of bytes received so far and the blob's size (None: unknown).
        """

    async def fetch_manifest(self, reference: Reference) -> ManifestAnswer:
        """Returns the manifest once it and its tag are on the disk. Raises like `manifest`, and `StoreError`."""

    def fetch_ahead(self, answer: ManifestAnswer) -> None:
        """Call it after this manifest was sent to a client: its blobs may then be fetched ahead. Returns at once."""

    async def read(self, digest: Digest, limit: int) -> bytes:
        """Returns the whole content of a small blob. Raises like `fetch`, and `BlobDamaged` above `limit` bytes."""

    async def settled(self) -> None:
        """Returns once all that was fetched before this call is durable. Raises `StoreError`."""

    def holds(self, digest: Digest) -> bool:
        """True if the store has the content, from any repository. Fast enough for the event loop."""

    def awaits(self, digest: Digest) -> bool:
        """True if this process is fetching the blob, for any repository."""

    async def stat_blob(self, digest: Digest) -> BlobStat:
        """Returns the answer to HEAD of a blob. Raises like `blob`."""

    async def prove(self, kind: Kind, reference: Reference | None) -> None:
        """Returns if upstream, asked now, gives the content to the current caller. No remembered answer is used.

        Raises `UpstreamDenied`, `ManifestUnknown`, `BlobUnknown`, `UpstreamError`.
        """

    async def tags(self, last: str, count: int) -> Listing:
        """Returns up to `count` tags after `last`, sorted. Raises `NameUnknown`, `UpstreamError`."""

    async def referrers(self, digest: Digest) -> Listing:
        """Returns descriptors of the manifests whose subject is `digest`. Raises `NameUnknown`, `UpstreamError`."""


class PlainRepository(Repository, Protocol):
    """A repository without rules about its content. It also answers what the rules of a guarded one need to know."""

    def fetch_ahead(self, answer: ManifestAnswer, by: Fetching | None = None) -> None:
        """Like `Repository.fetch_ahead`. Fetches through `by` if a guarded repository stands before this one."""

    async def indexes_naming(self, digest: Digest) -> list[Digest]:
        """Returns the stored indexes of this repository that name this manifest. Raises `StoreError`."""
