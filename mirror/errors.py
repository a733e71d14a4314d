"""Every exception of the mirror, and the one table that turns it into an HTTP answer.

    MirrorError
    ├── RequestError             the client's fault
    │   ├── NameInvalid · DigestInvalid · TagInvalid · RangeInvalid · TooManyRanges · PageInvalid
    │   ├── Unauthorized · Denied → QuotaExceeded · Unsupported · NotServed · TagTooNew · TooManyLogins
    │   ├── ManifestInvalid → ManifestTooLarge · ManifestBlobUnknown · BlobReferenced · TooManyTags      pushes
    │   ├── SizeInvalid · UploadOutOfOrder · UploadBusy · UploadBroken · TooManyUploads                  uploads
    │   ├── BodyInvalid → BodyTooLarge · AlreadyRunning · TooManyJobs · ImageProtected · ImageHosted     admin API
    │   └── NotFound → NameUnknown · ManifestUnknown · BlobUnknown · UploadUnknown · JobUnknown · RuleUnknown
    │                → PinUnknown
    ├── UpstreamError            the other registry's fault; carries .upstream and .status
    │   ├── UpstreamUnavailable                        no usable answer: DNS, connection, TLS, 5xx, a broken body
    │   │   └── UpstreamTimeout · UpstreamCircuitOpen  no progress in time; not asked, carries .retry_after in seconds
    │   │                · AskAgain                      not yet asked to the end, likewise
    │   ├── UpstreamDenied                             401 or 403 with every credential
    │   │   └── CredentialsRefused                     the mirror's own credentials are no longer valid
    │   ├── UpstreamThrottled                          429, or 503 with Retry-After; carries .retry_after in seconds
    │   ├── UpstreamNotFound                           404
    │   └── UpstreamInvalid                            an answer that breaks the protocol
    │       └── DigestMismatch · UpstreamOffLimits     wrong bytes; a name or URL that leads to a forbidden address
    ├── StoreError               the fault of the local disk, or of the bucket
    │   ├── StoreFull → BlobTooLarge · NoRoomForPush   no space, no inodes, quota, or nothing that may be evicted
    │   ├── BlobDamaged                                the file does not match its digest
    │   ├── BlobUnreadable                             the disk cannot read the file
    │   ├── RecordDamaged                              the record of a tag or manifest is not valid
    │   ├── ReplicaUnavailable   the replica that has an upload does not answer any more
    │   ├── BucketUnavailable → BucketDenied · BucketUnfit    the bucket does not answer; it refuses the mirror; it
    │   │                                              breaks the promises that hosted content needs
    │   └── LeaseLost                                  another replica may do this work by now
    ├── AccessUnavailable        the caller cannot be identified now: a token issuer does not answer
    ├── BundleError              a bundle, or another registry's data, cannot be imported or written
    ├── IndexUnavailable         the index did not answer in time; the disk still can
    ├── ListenerUnavailable      an address cannot be listened on now
    └── ConfigError              the configuration or the arguments; carries every mistake at once

Adapters turn foreign exceptions (aiohttp, OSError, Redis) into these at their border; the code above an adapter sees no
others. `mirror.server` turns them into answers, in one place.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


class MirrorError(Exception):
    """The base of all errors that the mirror raises on purpose. The message is for people and contains no secret."""

    @property
    def public(self) -> str:
        """The message for clients. It says less than the log if the full message would reveal our network."""
        return str(self)


class RequestError(MirrorError):
    """The request is at fault."""


class NameInvalid(RequestError):
    """A repository name that the distribution specification does not allow."""


class DigestInvalid(RequestError):
    """A digest that is malformed, or whose algorithm is not supported."""


class TagInvalid(RequestError):
    """A reference that is neither a tag nor a digest."""


class PageInvalid(RequestError):
    """`n` of a tag list is not a number."""


class RangeInvalid(RequestError):
    """A range outside the blob, or one that ends before it starts (RFC 9110, 15.5.17). `size` is the blob's size in
    bytes.
    """

    def __init__(self, message: str, size: int) -> None:
        super().__init__(message)
        self.size = size


class TooManyRanges(RequestError):
    """A request with too many ranges, or with ranges that overlap too much. The status is 400 and not 416: after 400
    clients ask for fewer ranges, after 416 they give up the pull.
    """


class Unauthorized(RequestError):
    """The caller must log in, or the credentials are wrong. `challenge` is the `WWW-Authenticate` that says how."""

    def __init__(self, message: str, challenge: str | None = None) -> None:
        super().__init__(message)
        self.challenge = challenge


class TooManyLogins(RequestError):
    """The password was not checked: too many are waiting, or upstream has refused too many for this name."""


class Denied(RequestError):
    """The caller is known, and is not allowed to do this."""


class TagImmutable(Denied):
    """The tag is immutable: it may neither move nor go, and what it needs may not be deleted."""


class QuotaExceeded(Denied):
    """The push would take a hosted registry beyond its quota. The message has the figures."""


class ManifestInvalid(RequestError):
    """The body of a manifest PUT is no manifest, or contradicts its media type or the digest in the path."""


class ManifestTooLarge(ManifestInvalid):
    """The body of a manifest PUT is larger than a manifest may be."""


class ManifestBlobUnknown(RequestError):
    """A manifest names content that its repository does not have. `digests` are those that are missing."""

    def __init__(self, message: str, digests: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.digests = tuple(digests)


class BlobReferenced(RequestError):
    """The content cannot be deleted, because a manifest of its repository names it."""


class TooManyTags(RequestError):
    """A manifest PUT that names more tags than one request may."""


class SizeInvalid(RequestError):
    """The length of a body contradicts its `Content-Range` or `Content-Length`."""


class UploadOutOfOrder(RequestError):
    """A chunk does not begin where the upload session ends. `offset` is the number of bytes that the session has."""

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message)
        self.offset = offset


class UploadBusy(RequestError):
    """Another request writes to the upload session."""


class UploadBroken(RequestError):
    """The body of an upload broke off, or came too slowly. The session keeps what arrived."""


class TooManyUploads(RequestError):
    """Too many upload sessions are open, in all or for this caller, or manifests that are being pushed take too much
    memory.
    """


class Unsupported(RequestError):
    """A method that this repository does not offer, such as a push to a mirrored one. `allowed` are the methods that it
    offers.
    """

    def __init__(self, message: str, allowed: Sequence[str] = ("GET", "HEAD")) -> None:
        super().__init__(message)
        self.allowed = tuple(allowed)


class NotServed(RequestError):
    """A path outside the API."""


class BodyInvalid(RequestError):
    """The body of a request to the admin API is not valid for that path."""


class BodyTooLarge(BodyInvalid):
    """The body of a request to the admin API is too large."""


class AlreadyRunning(RequestError):
    """The requested work is already running."""


class TooManyJobs(RequestError):
    """Too many jobs are waiting; no more are accepted."""


class ImageProtected(RequestError):
    """The image cannot be purged, because it is pinned or its tag is frozen."""


class ImageHosted(RequestError):
    """The operation is for cached images, and this image is hosted here."""


class TagTooNew(RequestError):
    """Every digest that the tag has pointed to is newer than the route's `minimum_age`."""


class NotFound(RequestError):
    """The requested object does not exist, or this caller may not see it."""


class NameUnknown(NotFound):
    """No such repository, or its registry is not configured."""


class ManifestUnknown(NotFound):
    """No such manifest in this repository."""


class BlobUnknown(NotFound):
    """No such blob in this repository, or not in the store."""


class UploadUnknown(NotFound):
    """No such upload session in this repository, or none of this caller."""


class JobUnknown(NotFound):
    """No such job; old jobs are deleted."""


class RuleUnknown(NotFound):
    """No `[[sync]]` or `[[replication]]` rule of this name."""


class PinUnknown(NotFound):
    """This image was not pinned by hand."""


class UpstreamError(MirrorError):
    """Another registry's fault. `upstream` is its configured name, `status` its HTTP status if there was one.

    `elsewhere` is true if the registry itself answered, and a host that it redirects to failed.
    """

    def __init__(self, message: str, *, upstream: str, status: int | None = None) -> None:
        super().__init__(message)
        self.upstream = upstream
        self.status = status
        self.elsewhere = False

    @property
    def public(self) -> str:
        """The message without the upstream's address, which would reveal our network."""
        return re.sub(rf"{re.escape(self.upstream)} \([^)]*\)", self.upstream, str(self))


class UpstreamUnavailable(UpstreamError):
    """No usable answer: DNS, the connection or TLS failed, or the status is 5xx. A retry may succeed."""

    @property
    def public(self) -> str:
        """Without cause and address if there was no answer: they would show a client which ports are open."""
        return super().public if self.status is not None else _unreachable(self)


class UpstreamTimeout(UpstreamUnavailable):
    """No progress in time."""


class UpstreamCircuitOpen(UpstreamUnavailable):
    """Upstream failed recently, so it was not asked; it may be asked again in `retry_after` seconds."""

    def __init__(self, message: str, *, upstream: str, retry_after: float) -> None:
        super().__init__(message, upstream=upstream)
        self.retry_after = retry_after


class AskAgain(UpstreamUnavailable):
    """A part is to be asked for again in `retry_after` seconds, once there is a turn for it: see `ports.BlobParts`. No
    client gets to see it.
    """

    def __init__(self, message: str, *, upstream: str, status: int | None = None, retry_after: float) -> None:
        super().__init__(message, upstream=upstream, status=status)
        self.retry_after = retry_after


class UpstreamDenied(UpstreamError):
    """Upstream answered 401 or 403 with every credential."""


class CredentialsRefused(UpstreamDenied):
    """Upstream refuses the mirror's own credentials. This says nothing about the requested content."""


class UpstreamThrottled(UpstreamError):
    """Upstream throttles the mirror, which does not ask it again for `retry_after` seconds."""

    def __init__(self, message: str, *, upstream: str, status: int | None = None, retry_after: float) -> None:
        super().__init__(message, upstream=upstream, status=status)
        self.retry_after = retry_after


class UpstreamNotFound(UpstreamError):
    """Upstream answered 404. `mirror.repository` turns this into `ManifestUnknown` or `BlobUnknown`."""


class UpstreamInvalid(UpstreamError):
    """Upstream's answer breaks the protocol, and is not used."""

    @property
    def public(self) -> str:
        """Without cause and address if it was no HTTP answer: they would reveal our network."""
        return super().public if self.status is not None else _unreachable(self)


class DigestMismatch(UpstreamInvalid):
    """The bytes do not match the digest."""


class UpstreamOffLimits(UpstreamInvalid):
    """The upstream's name, a redirect or a token server leads to an address that is not allowed for this upstream."""

    @property
    def public(self) -> str:
        """Without the address, and without the refusal: both would reveal our network."""
        return _unreachable(self)


def _unreachable(error: UpstreamError) -> str:
    return f"{error.upstream} cannot be reached"


class StoreError(MirrorError):
    """The local disk failed, or the bucket."""


class StaleRequest(MirrorError):
    """A request that was to change something has stood still for too long, or its client has left. It changes nothing
    any more: the client may have given up, and done something else since.
    """


class ReplicaUnavailable(StoreError):
    """Another replica of the cluster, which has what is asked for, does not answer any more."""


class BucketUnavailable(StoreError):
    """The object store cannot be reached, throttles the mirror, fails or takes too long. It may be asked again in
    `retry_after` seconds.
    """

    def __init__(self, message: str, *, retry_after: float = 5.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after

    @property
    def public(self) -> str:
        """Without the reason, which would reveal our network and the bucket's name."""
        return "the object store does not answer"


class BucketAbsent(BucketUnavailable):
    """The object store answers, and does not have the bucket."""


class BucketThrottled(BucketUnavailable):
    """The object store answers, and asks for fewer requests, perhaps only for this object."""


class BucketDenied(BucketUnavailable):
    """The object store refuses the credentials, or they lack a permission; the message says which.
    `wrong_credentials`: no permission would help.
    """

    def __init__(self, message: str, *, wrong_credentials: bool = False) -> None:
        super().__init__(message)
        self.wrong_credentials = wrong_credentials


class BucketUnfit(BucketUnavailable):
    """The object store does not do what it must for hosted content; the message says what. Asking again changes
    nothing.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason, retry_after=60.0)


class LeaseLost(StoreError):
    """Another replica may do this work by now; this one writes no more of it. Nothing is wrong: the other goes on."""

    def __init__(self, lease: str) -> None:
        super().__init__(f"another replica has the lease {lease}, or may have it")


class StoreFull(StoreError):
    """No space, no inodes, a quota, or nothing that may be evicted. Clients get the content from upstream."""


class BlobTooLarge(StoreFull):
    """The blob is larger than the capacity of the store. The store itself works."""


class NoRoomForPush(StoreFull):
    """The disk has no room for a push, even after cached content was evicted."""


class BlobDamaged(StoreError):
    """A stored file does not match its digest or its size."""


class BlobUnreadable(StoreError):
    """A stored file exists, but the disk cannot read it (EIO)."""


class RecordDamaged(StoreError):
    """The record of a tag or manifest exists, but is not valid. `version` is that of its content, by which it can be
    replaced or deleted.
    """

    def __init__(self, message: str, version: str = "") -> None:
        super().__init__(message)
        self.version = version


class RecordChanged(MirrorError):
    """Another process changed a record between the moment when it was read and the change that rested on it."""


class BundleError(MirrorError):
    """A bundle that must not be imported, or cannot be written. Only commands raise it."""


class IndexUnavailable(MirrorError):
    """The index did not answer in time. The mirror uses the disk instead."""


class ListenerUnavailable(MirrorError):
    """The mirror cannot listen on an address at the moment: another process does, or the machine does not have it yet.
    It does not start.
    """


class AccessUnavailable(MirrorError):
    """The caller cannot be identified now, because a token issuer does not answer."""


class ConfigError(MirrorError):
    """The configuration, or an argument of a command, is not valid. `mistakes` has one line for each mistake."""

    def __init__(self, mistakes: Sequence[str]) -> None:
        super().__init__("; ".join(mistakes))
        self.mistakes = tuple(mistakes)


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """How an error is answered: HTTP status and error code (distribution-spec, "Error Codes"). `reason` is the reason
    phrase of the status line, None for the usual one: of a 5xx, Docker, podman and skopeo show this and no message.
    """

    status: int
    code: str
    reason: str | None = None


ANSWERS: dict[type[MirrorError], ErrorAnswer] = {
    MirrorError: ErrorAnswer(500, "UNKNOWN"),
    RequestError: ErrorAnswer(400, "UNSUPPORTED"),
    NameInvalid: ErrorAnswer(400, "NAME_INVALID"),
    DigestInvalid: ErrorAnswer(400, "DIGEST_INVALID"),
    TagInvalid: ErrorAnswer(400, "MANIFEST_INVALID"),
    PageInvalid: ErrorAnswer(400, "PAGINATION_NUMBER_INVALID"),
    RangeInvalid: ErrorAnswer(416, "RANGE_INVALID"),
    TooManyRanges: ErrorAnswer(400, "RANGE_INVALID"),
    Unauthorized: ErrorAnswer(401, "UNAUTHORIZED"),
    Denied: ErrorAnswer(403, "DENIED"),
    Unsupported: ErrorAnswer(405, "UNSUPPORTED"),
    NotServed: ErrorAnswer(404, "UNSUPPORTED"),
    TagImmutable: ErrorAnswer(403, "DENIED"),
    QuotaExceeded: ErrorAnswer(403, "DENIED"),
    ManifestInvalid: ErrorAnswer(400, "MANIFEST_INVALID"),
    ManifestTooLarge: ErrorAnswer(413, "MANIFEST_INVALID"),
    ManifestBlobUnknown: ErrorAnswer(404, "MANIFEST_BLOB_UNKNOWN"),
    BlobReferenced: ErrorAnswer(405, "UNSUPPORTED"),
    TooManyTags: ErrorAnswer(414, "TAG_INVALID"),
    SizeInvalid: ErrorAnswer(400, "SIZE_INVALID"),
    UploadOutOfOrder: ErrorAnswer(416, "BLOB_UPLOAD_INVALID"),
    UploadBusy: ErrorAnswer(409, "BLOB_UPLOAD_INVALID"),
    UploadBroken: ErrorAnswer(400, "BLOB_UPLOAD_INVALID"),
    TooManyUploads: ErrorAnswer(429, "TOOMANYREQUESTS"),
    UploadUnknown: ErrorAnswer(404, "BLOB_UPLOAD_UNKNOWN"),
    NoRoomForPush: ErrorAnswer(507, "DENIED", "Insufficient Storage: the disk of the mirror has no room for this push"),
    BodyInvalid: ErrorAnswer(400, "BODY_INVALID"),
    BodyTooLarge: ErrorAnswer(413, "BODY_INVALID"),
    AlreadyRunning: ErrorAnswer(409, "ALREADY_RUNNING"),
    ImageProtected: ErrorAnswer(409, "PROTECTED"),
    ImageHosted: ErrorAnswer(409, "HOSTED"),
    TooManyJobs: ErrorAnswer(429, "TOOMANYREQUESTS"),
    TooManyLogins: ErrorAnswer(429, "TOOMANYREQUESTS"),
    TagTooNew: ErrorAnswer(403, "DENIED"),
    NotFound: ErrorAnswer(404, "NAME_UNKNOWN"),
    JobUnknown: ErrorAnswer(404, "JOB_UNKNOWN"),
    PinUnknown: ErrorAnswer(404, "PIN_UNKNOWN"),
    RuleUnknown: ErrorAnswer(404, "RULE_UNKNOWN"),
    NameUnknown: ErrorAnswer(404, "NAME_UNKNOWN"),
    ManifestUnknown: ErrorAnswer(404, "MANIFEST_UNKNOWN"),
    BlobUnknown: ErrorAnswer(404, "BLOB_UNKNOWN"),
    UpstreamError: ErrorAnswer(502, "UNAVAILABLE"),
    UpstreamUnavailable: ErrorAnswer(503, "UNAVAILABLE"),
    UpstreamCircuitOpen: ErrorAnswer(503, "UNAVAILABLE"),
    AskAgain: ErrorAnswer(503, "UNAVAILABLE"),
    UpstreamTimeout: ErrorAnswer(504, "UNAVAILABLE"),
    UpstreamDenied: ErrorAnswer(403, "DENIED"),
    CredentialsRefused: ErrorAnswer(401, "UNAUTHORIZED"),
    UpstreamThrottled: ErrorAnswer(429, "TOOMANYREQUESTS"),
    UpstreamNotFound: ErrorAnswer(404, "NAME_UNKNOWN"),
    UpstreamInvalid: ErrorAnswer(502, "UNAVAILABLE"),
    DigestMismatch: ErrorAnswer(502, "UNAVAILABLE"),
    UpstreamOffLimits: ErrorAnswer(502, "UNAVAILABLE"),
    StoreError: ErrorAnswer(503, "UNAVAILABLE"),
    StoreFull: ErrorAnswer(503, "UNAVAILABLE"),
    BlobTooLarge: ErrorAnswer(503, "UNAVAILABLE"),
    BlobDamaged: ErrorAnswer(503, "UNAVAILABLE"),
    BlobUnreadable: ErrorAnswer(503, "UNAVAILABLE"),
    RecordDamaged: ErrorAnswer(503, "UNAVAILABLE"),
    RecordChanged: ErrorAnswer(503, "UNAVAILABLE"),
    ReplicaUnavailable: ErrorAnswer(503, "UNAVAILABLE"),
    BucketUnavailable: ErrorAnswer(503, "UNAVAILABLE"),
    BucketAbsent: ErrorAnswer(503, "UNAVAILABLE"),
    BucketThrottled: ErrorAnswer(503, "UNAVAILABLE"),
    BucketDenied: ErrorAnswer(503, "UNAVAILABLE"),
    BucketUnfit: ErrorAnswer(503, "UNAVAILABLE"),
    LeaseLost: ErrorAnswer(503, "UNAVAILABLE"),
    StaleRequest: ErrorAnswer(503, "UNAVAILABLE"),
    BundleError: ErrorAnswer(400, "UNSUPPORTED"),
    IndexUnavailable: ErrorAnswer(503, "UNAVAILABLE"),
    AccessUnavailable: ErrorAnswer(503, "UNAVAILABLE"),
    ListenerUnavailable: ErrorAnswer(503, "UNAVAILABLE"),
    ConfigError: ErrorAnswer(500, "UNKNOWN"),
}


def answer_for(error: MirrorError) -> ErrorAnswer:
    """The row of the error's class, or else of its nearest ancestor.

    A 401 of upstream stays a 401: registries answer 401 for names that do not exist, and clients tell it
    from 403.
    """
    if isinstance(error, UpstreamDenied) and error.status == 401:
        return ErrorAnswer(401, "UNAUTHORIZED")
    for ancestor in type(error).__mro__:
        if answer := ANSWERS.get(ancestor):
            return answer
    return ANSWERS[MirrorError]


def reason_of(error: Exception) -> str:
    """Why an operation on a file or socket failed, in words, without the number and the path that an `OSError` prints.

    Also for a file that was read as text, and is none.
    """
    if isinstance(error, UnicodeError):
        # its own words quote the file
        return "not text"
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
