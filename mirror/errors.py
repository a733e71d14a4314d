"""Every exception of the mirror, and the one table that turns it into an HTTP answer.

    MirrorError
    ├── RequestError             the client's doing
    │   ├── NameInvalid · DigestInvalid · TagInvalid · RangeInvalid · TooManyRanges · PageInvalid
    │   ├── Unauthorized · Denied · Unsupported · NotServed · TagTooNew · TooManyLogins
    │   ├── BodyInvalid → BodyTooLarge · AlreadyRunning · TooManyJobs · ImageProtected   of the admin API alone
    │   └── NotKnown → NameUnknown · ManifestUnknown · BlobUnknown · JobUnknown · RuleUnknown · PinUnknown
    ├── UpstreamError            the other registry's doing; carries .upstream and .status
    │   ├── UpstreamUnavailable                       no usable answer: dial, DNS, TLS, 5xx, a broken body
    │   │   └── UpstreamTimeout · UpstreamCircuitOpen  no progress in time; not asked, carries .retry_after in seconds
    │   ├── UpstreamDenied                            401 or 403 after every credential was tried
    │   │   └── CredentialsRefused                    our own credentials are no good any more
    │   ├── UpstreamThrottled                         429, or 503 with Retry-After; carries .retry_after in seconds
    │   ├── UpstreamNotFound                          404
    │   └── UpstreamInvalid                           an answer that must not be believed
    │       └── DigestMismatch · UpstreamOffLimits    other bytes; a name or URL that leads to a forbidden address
    ├── StoreError               ours
    │   ├── StoreFull → BlobTooLarge                  no space, no inodes, quota, or pins leave nothing to drop
    │   ├── BlobDamaged                               what is on disk is not what its name says
    │   ├── BlobUnreadable                            the disk does not give it
    │   └── RecordDamaged                             a record of a tag or manifest that makes no sense
    ├── AccessUnavailable        who is calling cannot be told now: an issuer of tokens does not answer
    ├── BundleError              a bundle, or the data of another registry, that cannot be taken in or written
    ├── IndexUnavailable         the index did not answer in its budget; the disk still can
    └── ConfigError              start-up only; carries every mistake at once

Errors are raised where they are known and translated once, in `mirror.server`. Adapters turn foreign exceptions
(aiohttp, OSError, Redis) into these at their border, so nobody above an adapter sees a foreign one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


class MirrorError(Exception):
    """Anything that the mirror itself raises on purpose. The message is for people and never holds a secret."""

    @property
    def public(self) -> str:
        """The message for clients. It says less than the log if the whole message would show them our network."""
        return str(self)


class RequestError(MirrorError):
    """The request is at fault."""


class NameInvalid(RequestError):
    """A repository name outside the grammar of the distribution specification."""


class DigestInvalid(RequestError):
    """A digest that is malformed, or of an algorithm that is not supported."""


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
    """More ranges in one request than are answered, or ranges that overlap too much. Not 416: clients take that as the
    end of the pull, and ask for fewer ranges after 400.
    """


class Unauthorized(RequestError):
    """The caller must say who they are, or did so wrongly. `challenge` is a `WWW-Authenticate` that says how."""

    def __init__(self, message: str, challenge: str | None = None) -> None:
        super().__init__(message)
        self.challenge = challenge


class TooManyLogins(RequestError):
    """So many passwords wait to be checked, or so many of this name were refused by upstream, that this one is not."""


class Denied(RequestError):
    """The caller is known and may not."""


class Unsupported(RequestError):
    """A method that this repository does not offer, such as a push to a mirrored one."""


class NotServed(RequestError):
    """A path outside the API."""


class BodyInvalid(RequestError):
    """The body of a request to the admin API is not what that path takes."""


class BodyTooLarge(BodyInvalid):
    """It is larger than anything that makes sense."""


class AlreadyRunning(RequestError):
    """What was asked for is being done already."""


class TooManyJobs(RequestError):
    """So many jobs wait that no more are taken."""


class ImageProtected(RequestError):
    """An image that is to be purged is pinned, or its tag is frozen."""


class TagTooNew(RequestError):
    """All that a tag has pointed to is newer than the route's `minimum_age`."""


class NotKnown(RequestError):
    """What was asked for does not exist, or not for this caller."""


class NameUnknown(NotKnown):
    """No such repository, or its registry is not configured here."""


class ManifestUnknown(NotKnown):
    """No such manifest in this repository."""


class BlobUnknown(NotKnown):
    """No such blob in this repository, or not in the store."""


class JobUnknown(NotKnown):
    """No job of this name, or not any more."""


class RuleUnknown(NotKnown):
    """No `[[sync]]` rule of this name."""


class PinUnknown(NotKnown):
    """No pin of this image that was set by hand."""


class UpstreamError(MirrorError):
    """Another registry's doing. `upstream` is its configured name, `status` its HTTP status where there was one.

    `elsewhere` says that the registry itself answered, and a host that it redirects to failed.
    """

    def __init__(self, message: str, *, upstream: str, status: int | None = None) -> None:
        super().__init__(message)
        self.upstream = upstream
        self.status = status
        self.elsewhere = False

    @property
    def public(self) -> str:
        """The message without the upstream's address, which is about our network."""
        return re.sub(rf"{re.escape(self.upstream)} \([^)]*\)", self.upstream, str(self))


class UpstreamUnavailable(UpstreamError):
    """No usable answer: DNS, dial, TLS, 5xx, a connection that broke. Worth another try."""

    @property
    def public(self) -> str:
        """Without a status nobody answered: why not, and at which address, would tell open ports from closed ones."""
        return super().public if self.status is not None else _unreachable(self)


class UpstreamTimeout(UpstreamUnavailable):
    """No progress in time."""


class UpstreamCircuitOpen(UpstreamUnavailable):
    """Upstream did not answer lately, so it was not asked; it may be asked again in `retry_after` seconds."""

    def __init__(self, message: str, *, upstream: str, retry_after: float) -> None:
        super().__init__(message, upstream=upstream)
        self.retry_after = retry_after


class UpstreamDenied(UpstreamError):
    """401 or 403 although every credential was tried."""


class CredentialsRefused(UpstreamDenied):
    """The mirror's own credentials are refused: expired, or replaced. That says nothing about the content asked for."""


class UpstreamThrottled(UpstreamError):
    """Upstream asked us to slow down; nobody asks it again for `retry_after` seconds."""

    def __init__(self, message: str, *, upstream: str, status: int | None = None, retry_after: float) -> None:
        super().__init__(message, upstream=upstream, status=status)
        self.retry_after = retry_after


class UpstreamNotFound(UpstreamError):
    """404. `mirror.repository` knows whether a manifest or a blob was asked for, and says so."""


class UpstreamInvalid(UpstreamError):
    """An answer that breaks the protocol and must not be believed."""

    @property
    def public(self) -> str:
        """Without a status it was no HTTP answer: what answers there is about our network."""
        return super().public if self.status is not None else _unreachable(self)


class DigestMismatch(UpstreamInvalid):
    """The bytes are not those that the digest names."""


class UpstreamOffLimits(UpstreamInvalid):
    """The upstream's name, a redirect or a realm leads to an address that this upstream may not lead to."""

    @property
    def public(self) -> str:
        """Neither the address nor that it was refused: both are about our network."""
        return _unreachable(self)


def _unreachable(error: UpstreamError) -> str:
    return f"{error.upstream} cannot be reached"


class StoreError(MirrorError):
    """The local disk failed us."""


class StoreFull(StoreError):
    """No space, no inodes, a quota, or pins that leave nothing to drop. Never the client's problem."""


class BlobTooLarge(StoreFull):
    """A blob of more bytes than the store may ever hold. The store itself is well."""


class BlobDamaged(StoreError):
    """A file whose bytes or size are not what its name says."""


class BlobUnreadable(StoreError):
    """A file that is there, and whose bytes the disk does not give (EIO)."""


class RecordDamaged(StoreError):
    """A record of a tag or manifest that is there and makes no sense. What it said is not known."""


class RecordChanged(MirrorError):
    """Another process changed a record between the moment when it was read and the change that rested on it."""


class BundleError(MirrorError):
    """A bundle that must not be taken in, or cannot be written. Only the command line meets it."""


class IndexUnavailable(MirrorError):
    """The index did not answer within its budget. The disk still can."""


class AccessUnavailable(MirrorError):
    """Who is calling cannot be told now, because an issuer of tokens does not answer."""


class ConfigError(MirrorError):
    """The configuration is unusable. `mistakes` names every setting that is wrong, one line each."""

    def __init__(self, mistakes: Sequence[str]) -> None:
        super().__init__("; ".join(mistakes))
        self.mistakes = tuple(mistakes)


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """How an error looks to a client: HTTP status and error code (distribution-spec, "Error Codes")."""

    status: int
    code: str


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
    BodyInvalid: ErrorAnswer(400, "BODY_INVALID"),
    BodyTooLarge: ErrorAnswer(413, "BODY_INVALID"),
    AlreadyRunning: ErrorAnswer(409, "ALREADY_RUNNING"),
    ImageProtected: ErrorAnswer(409, "KEPT"),
    TooManyJobs: ErrorAnswer(429, "TOOMANYREQUESTS"),
    TooManyLogins: ErrorAnswer(429, "TOOMANYREQUESTS"),
    TagTooNew: ErrorAnswer(403, "DENIED"),
    NotKnown: ErrorAnswer(404, "NAME_UNKNOWN"),
    JobUnknown: ErrorAnswer(404, "JOB_UNKNOWN"),
    PinUnknown: ErrorAnswer(404, "PIN_UNKNOWN"),
    RuleUnknown: ErrorAnswer(404, "RULE_UNKNOWN"),
    NameUnknown: ErrorAnswer(404, "NAME_UNKNOWN"),
    ManifestUnknown: ErrorAnswer(404, "MANIFEST_UNKNOWN"),
    BlobUnknown: ErrorAnswer(404, "BLOB_UNKNOWN"),
    UpstreamError: ErrorAnswer(502, "UNAVAILABLE"),
    UpstreamUnavailable: ErrorAnswer(503, "UNAVAILABLE"),
    UpstreamCircuitOpen: ErrorAnswer(503, "UNAVAILABLE"),
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
    BundleError: ErrorAnswer(400, "UNSUPPORTED"),
    IndexUnavailable: ErrorAnswer(503, "UNAVAILABLE"),
    AccessUnavailable: ErrorAnswer(503, "UNAVAILABLE"),
    ConfigError: ErrorAnswer(500, "UNKNOWN"),
}


def answer_for(error: MirrorError) -> ErrorAnswer:
    """The nearest row of the table, walking up the class's ancestors.

    A 401 of upstream stays a 401 (registries answer so for names that do not exist, and clients tell it from 403).
    """
    if isinstance(error, UpstreamDenied) and error.status == 401:
        return ErrorAnswer(401, "UNAUTHORIZED")
    for ancestor in type(error).__mro__:
        if answer := ANSWERS.get(ancestor):
            return answer
    return ANSWERS[MirrorError]
