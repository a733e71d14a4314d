"""What can be done with a repository, verb by verb. A repository has the verbs that it can do, and no others.

    Readable     what clients may ask of any repository         sealed, proxied, both guarded
    Fetchable    what is not here can be brought here           proxied, also guarded
    Writable     clients may push and delete                    hosted
    InBucket     clients may be sent to a bucket for blobs      hosted, proxied, also guarded, virtual
    GivesParts   clients may be sent unverified parts of blobs  proxied, also guarded, virtual

A caller that wants to fetch asks `isinstance(repository, Fetchable)`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol, TypeGuard, runtime_checkable

from mirror.fills.read_ahead import Fetching
from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor
from mirror.oci.reference import Reference, Repo
from mirror.policy.access_rules import Action
from mirror.ports import BlobObject, Body, Steps
from mirror.repository.answers import BlobContent, BlobStat, Listing, ManifestAnswer, PartialContent

#: Seconds without a byte after which another request may go on with an upload session.
IDLE: Final = 3.0


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

    async def referrers(self, digest: Digest, after: Digest | None = None) -> Listing:
        """Returns descriptors of the manifests whose subject is `digest`: as many as fit in a page, of those after the
        digest `after`. Raises like `tags`.
        """

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


@runtime_checkable
class InBucket(Protocol):
    """A repository some of whose blobs clients may read from a bucket, without the mirror."""

    async def blob_object(self, digest: Digest) -> BlobObject | None:
        """Returns the object that certainly has the blob at this moment, for a caller who may have it; nothing that was
        read before the call counts. None if there is none, or if this blob must be sent from here: `blob` then says
        more. Raises `Denied`, and `StoreError` if the bucket cannot be asked.
        """


@runtime_checkable
class GivesParts(Protocol):
    """A repository that may send small parts of blobs before the whole is verified."""

    async def blob_parts(self, digest: Digest, header: str, by: str) -> PartialContent | None:
        """Returns the parts that a `Range` header asks for, once the first bytes are here. The caller closes them. None
        if this request must be answered in the ordinary way; `blob` then says more. `by` is noted as the one who is
        sent unverified bytes: a caller, or an address. Raises `Denied`, `UpstreamError`.
        """


class Pusher(Protocol):
    """The caller of a push or a deletion. The rules are judged anew at each call."""

    @property
    def name(self) -> str:
        """The caller as in logs and records, unique: `user:alice`."""

    def may(self, action: Action, repo: Repo) -> bool:
        """True if the caller may do this. False for pulls of a registry whose upstream is asked about each caller."""

    async def may_pull(self, repo: Repo) -> bool:
        """Like `may` for pulls; asks the upstream of a registry that wants to be asked. Raises `UpstreamError`,
        `AccessUnavailable`.
        """

    def steps(self) -> Steps:
        """The steps of this request from now on: its body is here, as far as it is small. On the event loop."""


class PushBody(Body, Protocol):
    """The body of a client's request. `readinto` returns 0 if no byte is here at the moment, or at the end."""

    @property
    def length(self) -> int | None:
        """Size in bytes of the whole body; None if the client does not say it."""

    async def wait(self, idle: Callable[[], Awaitable[None]] | None = None) -> bool:
        """Returns once bytes can be read; False at the proper end of the body. Raises `UploadBroken` if it breaks off
        or comes too slowly. Once nothing has come for `IDLE` seconds, `idle` is called; it may raise.
        """


class Upload(Protocol):
    """An upload session that this request writes to, and no other."""

    @property
    def offset(self) -> int:
        """How many bytes the session has."""

    async def append(self, body: PushBody) -> int:
        """Appends the body and returns the new offset. What was received before an error is kept, except if the quota
        or the disk does not allow the upload: then the session is over and leaves nothing.

        Raises `UploadBroken`, `QuotaExceeded`, `NoRoomForPush`, `StoreError`.
        """

    async def commit(self, digest: Digest) -> int:
        """Checks the digest, makes the blob durable and links it to the repository; the session is over. Returns the
        size of the blob in bytes. Raises `DigestInvalid` (the session stays), `QuotaExceeded`, `StoreError`.
        """

    async def complete(self, body: PushBody, digest: Digest) -> int:
        """`append`, and then `commit`. Returns the size of the blob in bytes. Raises what they raise. A full quota does
        not refuse a blob that counts already and that the caller could pull here.
        """

    async def cancel(self) -> None:
        """Ends the session and deletes its bytes."""

    async def close(self) -> None:
        """Lets other requests write to the session. Repeatable."""


@dataclass(frozen=True, slots=True)
class ManifestPushed:
    """What a manifest PUT has done: the manifest's digest, the tags that point to it now, its subject, and which of the
    tags pointed to another manifest before.
    """

    digest: Digest
    tags: tuple[str, ...] = ()
    subject: Digest | None = None
    moved: tuple[str, ...] = ()


@runtime_checkable
class Writable(Protocol):
    """A hosted repository as a caller may write to it. What was answered is durable, and every process sees it.

    Every call raises `Denied` if the registry is read-only or does not allow this name, and `StoreError`.
    """

    async def stat_for_push(self, digest: Digest, pusher: Pusher) -> BlobStat:
        """Returns the answer to HEAD of a blob by a caller who may push. If the caller may pull the blob from another
        repository here, it is reserved. Raises `BlobUnknown`.
        """

    async def blob_for_push(self, digest: Digest, pusher: Pusher) -> BlobContent:
        """Returns the blob for a caller who may have reserved it. The caller closes it. Raises `BlobUnknown`."""

    async def begin_upload(self, pusher: Pusher, size: int | None = None, digest: Digest | None = None) -> str:
        """Begins a session and returns its id; `size` is the blob's size in bytes, and `digest` its digest, if the
        client says them. See `Upload.complete`.

        Raises `TooManyUploads`, `QuotaExceeded`, `NoRoomForPush`.
        """

    def upload_offset(self, session: str, pusher: Pusher) -> int:
        """Returns how many bytes the session has. Raises `UploadUnknown`."""

    async def upload(self, session: str, pusher: Pusher) -> Upload:
        """Returns the session for writing. The caller closes it. Raises `UploadUnknown`, `UploadBusy`."""

    async def mount(self, digest: Digest, source: Repo | None, pusher: Pusher) -> bool:
        """Links a blob that the caller may pull from `source`, or, if that is None, from any repository here. False if
        the client must upload it. Raises `QuotaExceeded`.
        """

    async def put_manifest(
        self, reference: Reference, tags: tuple[str, ...], content: bytes, media_type: str | None, pusher: Pusher
    ) -> ManifestPushed:
        """Stores a manifest under its digest or tag, and under more `tags`. `media_type` is the `Content-Type`.

        Raises `ManifestInvalid`, `DigestInvalid`, `ManifestBlobUnknown`, `QuotaExceeded`; `Denied` if a tag would move
        and the caller may not overwrite.
        """

    async def delete_tag(self, tag: str, pusher: Pusher) -> None:
        """Deletes a tag; its manifest stays. Raises `ManifestUnknown`."""

    async def delete_manifest(self, digest: Digest, pusher: Pusher) -> None:
        """Deletes a manifest and all its tags. Raises `ManifestUnknown`."""

    async def delete_blob(self, digest: Digest, pusher: Pusher) -> None:
        """Removes the repository's link to a blob. Raises `BlobUnknown`, `BlobReferenced`."""

    async def undelete(self, reference: Reference, pusher: Pusher) -> None:
        """Brings back a deleted tag, or a deleted manifest with the tags that it had and that point nowhere else now.

        Raises `ManifestUnknown` if there is nothing to bring back, `ManifestBlobUnknown` if content is gone.
        """


class Hosted(Readable, Writable, Protocol):
    """A repository that clients may read and write."""


#: Whether the repositories of a class are `Writable`. `isinstance` would look for each verb at every request.
_writable: Final[dict[type, bool]] = {}


def is_hosted(repository: Readable) -> TypeGuard[Hosted]:
    """True if clients may push to the repository."""
    kind = type(repository)
    if kind not in _writable:
        _writable[kind] = isinstance(repository, Writable)
    return _writable[kind]


async def all_referrers(repository: Readable, digest: Digest) -> AsyncGenerator[Descriptor, None]:
    """Each referrer of a manifest, page by page. Raises like `Readable.referrers`."""
    after: Digest | None = None
    while True:
        page = await repository.referrers(digest, after)
        for descriptor in page.items:
            yield descriptor
        if not page.more or not page.items:
            return
        after = page.items[-1].digest
