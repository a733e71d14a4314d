"""Remote registries: what is read from them, and what is written to those that take pushes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor, Manifest
from mirror.oci.reference import Reference
from mirror.ports.content import BlobReader
from mirror.ports.streams import Body


@dataclass(frozen=True, slots=True)
class TagBatch:
    """Some tags of a list, and whether more follow."""

    tags: tuple[str, ...]
    more: bool


class BlobParts(Protocol):
    """One blob of an upstream that is received in parts, perhaps over several connections at once; for one flight.

    pull ── a turn among the blobs under way, kept from one part to the next ──> pull … ──> release
       └── further: a turn of its own, if one is free at once
    take_turn ── a turn, kept whatever becomes of the parts ──> pull, which does not wait … ──> release
                     ^                                            │
                     └── what has to be waited for is over ───────┴── `AskAgain`
    """

    @property
    def most(self) -> int:
        """The most connections that may be open for the blob at once."""

    def pull(self, start: int, stop: int | None = None) -> AbstractAsyncContextManager[Body]:
        """See `Upstream.blob`. If the upstream has several addresses, further parts come from the one that answered."""

    async def take_turn(self) -> None:
        """Waits for the turn of the next part, and for a token if one is needed. From then on `pull` waits for answers
        alone, and raises `AskAgain` where it would have to wait for anything else: for small parts of a blob, whose
        bytes others wait for as soon as they are claimed. Repeatable.
        """

    def further(self, start: int, stop: int, size: int) -> AbstractAsyncContextManager[Body | None]:
        """A part by a further connection, without which the blob comes as well; `size` is that of the whole blob in
        bytes. It is asked for once and not waited for: None if no turn is free. What it raises has no effect on other
        calls. The body begins at `start`, and ends at `stop` or before it.

        Raises `UpstreamThrottled` if upstream wants fewer requests, `UpstreamInvalid` if it sends anything else than
        this part, and other `UpstreamError`s.
        """

    def release(self) -> None:
        """Give the turn back that was kept. Repeatable."""


class Upstream(Protocol):
    """One remote registry. `repo` is always the repository's name within that registry.

    Every call may raise `UpstreamUnavailable`, `UpstreamTimeout`, `UpstreamDenied`, `UpstreamThrottled`,
    `UpstreamNotFound` and `UpstreamInvalid`. Calls that are worth retrying have been retried before.
    """

    @property
    def name(self) -> str:
        """The registry's name as clients write it: `docker.io`."""

    @property
    def patience(self) -> float:
        """The factor, at least 1, by which a tag's answer is trusted longer because upstream's pull quota runs low."""

    async def resolve(self, repo: str, reference: Reference) -> Descriptor:
        """The descriptor that a reference points to, by HEAD; by GET only if upstream's answer to HEAD is unusable."""

    async def manifest(self, repo: str, reference: Reference) -> Manifest:
        """The manifest, by GET. Its digest is computed from its bytes (from the payload if it is a signed manifest).

        If `reference` is a digest, the manifest has that digest.
        """

    def blob(
        self, repo: str, digest: Digest, start: int = 0, stop: int | None = None
    ) -> AbstractAsyncContextManager[Body]:
        """A blob from offset `start` up to, but not including, `stop` (None: to its end). Entered once upstream's
        headers have arrived. An upstream need not heed the range: `body.start` may be lower, and more bytes may follow
        after `stop`.
        """

    def parts(self, repo: str, digest: Digest) -> BlobParts:
        """The same blob, for a flight that may ask for it in parts."""

    async def blob_size(self, repo: str, digest: Digest) -> int | None:
        """The size of a blob in bytes; None if the repository has it but upstream does not state its size.

        Raises `UpstreamNotFound` if the repository does not have the blob. Never uses HEAD.
        """

    def tags(self, repo: str, after: str = "") -> AsyncGenerator[TagBatch, None]:
        """The tags in upstream's own order, in at least one batch; only those after `after`, if upstream supports that.

        A page is requested when the caller takes its batch. A caller that stops before the end closes the generator
        (`aclose`). Strings that are not valid tags are left out, and a tag may come twice. Raises `UpstreamError`, and
        `StoreError` if a large page cannot be kept on disk while it is read.
        """

    async def referrers(self, repo: str, digest: Digest) -> list[Descriptor]:
        """Manifests whose subject is `digest`, by the API or by the fallback tag. Empty if there are none."""

    async def aclose(self) -> None:
        """Close all connections. Repeatable."""


@dataclass(frozen=True, slots=True)
class SentBlob:
    """A blob that is to be sent: its `size` in bytes, and `open`, which opens it and is called in a thread, once for
    each try; the reader is closed after that. It raises `BlobUnknown`, `StoreError`.

    `take` is called in threads with the number of bytes before they are sent, and returns the seconds to wait first, to
    limit the rate. `progress` is called in threads with how many bytes the registry has so far.
    """

    digest: Digest
    size: int
    open: Callable[[], BlobReader] = field(repr=False)
    take: Callable[[int], float] = field(default=lambda count: 0.0, repr=False)
    progress: Callable[[int], None] = field(default=lambda count: None, repr=False)


class Writer(Protocol):
    """One remote registry that takes pushes. `repo` is always the repository's name within that registry.

    Every call may raise what calls of `Upstream` raise. Calls that are worth retrying have been retried before, and if
    the registry asks to slow down, they have waited. "Absent" is an answer of the registry; if it gives none, that is
    an error.
    """

    @property
    def name(self) -> str:
        """The registry's name, as in the configuration."""

    async def digest_of(self, repo: str, tag: str) -> Digest | None:
        """What a tag points to; None if it is absent."""

    async def has_manifest(self, repo: str, digest: Digest) -> bool:
        """True if the repository has the manifest."""

    async def manifest(self, repo: str, reference: Reference) -> Manifest | None:
        """A manifest, by GET; None if it is absent."""

    async def has_blob(self, repo: str, digest: Digest, size: int) -> bool:
        """True if the repository has the blob, with this size in bytes."""

    async def put_blob(self, repo: str, blob: SentBlob, mounts: Sequence[str] = ()) -> bool:
        """Give the repository a blob that it does not have. False if it was mounted from one of the repositories
        `mounts`, without a byte. A connection that breaks is resumed where the registry is.

        Raises also what `SentBlob.open` raises, and `DigestMismatch` if the registry got other bytes.
        """

    async def put_manifest(self, repo: str, manifest: Manifest, reference: Reference) -> bool:
        """Store a manifest under its digest or a tag. True if the registry lists it among the referrers of its subject;
        of a manifest without a subject, the result means nothing. Raises `UpstreamNotFound` if the registry says that
        something is missing which the manifest names.
        """

    async def delete_tag(self, repo: str, tag: str) -> bool:
        """Delete a tag and nothing else; True if it is absent now. False if the registry cannot delete tags alone."""

    async def aclose(self) -> None:
        """Close all connections. Repeatable."""
