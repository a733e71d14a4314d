"""What a failure of obstore means. It tells many of them apart by their texts only.

The texts have up to thirty lines with a dump of what lies below, which contains URLs and answers of the store. None of
that gets into our messages but what is picked here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Final

from obstore import exceptions

from mirror.errors import BucketDenied


class Kind(Enum):
    """What the caller can do about it."""

    ABSENT = "absent"
    NO_BUCKET = "no bucket"
    NOT_CHANGED = "not changed"
    CHANGED = "changed"
    #: The store was busy with another write of the same key, and made none of the two, or one.
    CONFLICT = "conflict"
    BEYOND = "beyond the end"
    DENIED = "denied"
    THROTTLED = "throttled"
    TIMEOUT = "timeout"
    UNAVAILABLE = "unavailable"
    #: The store does not accept the request; sent again, it would not either.
    INVALID = "invalid"


#: An answer of the store, of whatever content: it is up, and has the bucket.
ANSWERS: Final = frozenset(Kind) - {Kind.THROTTLED, Kind.TIMEOUT, Kind.UNAVAILABLE, Kind.NO_BUCKET}
#: Failures after which the same request may succeed.
PASSING: Final = frozenset({Kind.THROTTLED, Kind.TIMEOUT, Kind.UNAVAILABLE, Kind.CONFLICT})


@dataclass(frozen=True, slots=True)
class Failure:
    """`reason` says in a few words what happened, without secrets. `sent`: the store may have done what was asked."""

    kind: Kind
    reason: str
    sent: bool = True

    @property
    def names_object(self) -> bool:
        """True if the answer says that the object is absent, and so that the bucket is there."""
        return self.reason.endswith(("NoSuchKey", "BlobNotFound"))


#: Codes of S3, Azure and Google that are about the credentials themselves, and what is wrong with these. Any other
#: refusal is about what they may do.
_CREDENTIALS: Final = {
    "SignatureDoesNotMatch": "the secret key does not belong to the access key",
    "InvalidAccessKeyId": "the store does not know the access key",
    "ExpiredToken": "the temporary credentials have expired",
    "InvalidToken": "the session token is not valid",
    "TokenRefreshRequired": "the temporary credentials have expired",
    "RequestTimeTooSkewed": "the clock of this machine, or that of the store, is wrong",
    "AuthenticationFailed": "the store does not accept the key or token",
    "there are no credentials": "set them in [bucket], or give the machine an identity",
}


def denied(what: str, reason: str, permission: str) -> BucketDenied:
    """The error for a refusal: `what` was refused, for the store's `reason`, and would need `permission` (empty: not
    known which). The message says whether the credentials are wrong, or lack that permission.
    """
    wrong = next((words for code, words in _CREDENTIALS.items() if code in reason), "")
    needed = f"it takes {permission}" if permission else "the credentials are wrong, or may not do that"
    return BucketDenied(f"{what} ({reason}): {wrong or needed}", wrong_credentials=bool(wrong))


_STATUS: Final = re.compile(r"status code: (\d{3})([ \w-]*)")
_CODE: Final = re.compile(r"<Code>(\w{1,60})</Code>|\"code\":\s*\"(\w{1,60})\"")
#: Of one object of a bulk deletion: at S3 a code, at Azure a status.
_OF_ONE: Final = re.compile(r"\(code: (\w{1,60})\)?")
_HTTP_KIND: Final = re.compile(r"\bkind: (Connect|Request|Interrupted|Timeout|Decode|Unknown)\b")
_URL: Final = re.compile(r"Error performing [A-Z]+ https?://([^/\s?@]+)[/\s?]")

#: Codes of S3, Azure and Google that say more than their status.
_BY_CODE: Final = {
    "NoSuchBucket": Kind.NO_BUCKET,
    "ContainerNotFound": Kind.NO_BUCKET,
    "ContainerBeingDeleted": Kind.NO_BUCKET,
    "AccountIsDisabled": Kind.NO_BUCKET,
    "ConditionalRequestConflict": Kind.CONFLICT,
    "OperationAborted": Kind.CONFLICT,
    "ExpiredToken": Kind.DENIED,
    "InvalidToken": Kind.DENIED,
    "TokenRefreshRequired": Kind.DENIED,
    "RequestTimeTooSkewed": Kind.DENIED,
    "InvalidAccessKeyId": Kind.DENIED,
    # what Ceph says to all but one of those that write a key at the same moment
    "UnknownError": Kind.CONFLICT,
    "AccessDenied": Kind.DENIED,
    "NoSuchKey": Kind.ABSENT,
    "SlowDown": Kind.THROTTLED,
    "TooManyRequests": Kind.THROTTLED,
    "RequestTimeout": Kind.UNAVAILABLE,
    "InternalError": Kind.UNAVAILABLE,
    "IncompleteBody": Kind.UNAVAILABLE,
    # the bytes were changed on the way: sent again, they may arrive
    "BadDigest": Kind.UNAVAILABLE,
    "XAmzContentSHA256Mismatch": Kind.UNAVAILABLE,
    "XAmzContentChecksumMismatch": Kind.UNAVAILABLE,
}
_BY_STATUS: Final = {
    304: Kind.NOT_CHANGED,
    401: Kind.DENIED,
    403: Kind.DENIED,
    404: Kind.ABSENT,
    408: Kind.TIMEOUT,
    409: Kind.CHANGED,
    412: Kind.CHANGED,
    416: Kind.BEYOND,
    429: Kind.THROTTLED,
    503: Kind.THROTTLED,
}
#: Parts of a dump, and what they mean. A request that did not reach the store cannot have been done.
_CAUSES: Final = (
    ("dns error", "its name cannot be resolved"),
    ("ConnectionRefused", "the connection is refused"),
    ("UnknownIssuer", "its certificate is of an unknown authority: set ca_file"),
    ("CaUsedAsEndEntity", "its certificate is that of an authority: make one for the server, with CA:FALSE"),
    ("NotValidForName", "its certificate is for another name"),
    ("Expired", "its certificate has expired"),
    ("InvalidCertificate", "its certificate is not valid"),
    ("InvalidContentType", "it does not speak TLS"),
    ("NetworkUnreachable", "the network cannot be reached"),
    ("HostUnreachable", "the host cannot be reached"),
    ("ConnectionReset", "the connection was reset"),
    ("IncompleteMessage", "the connection was closed before the answer"),
    ("UnexpectedEof", "the connection was closed in the middle"),
    ("TimedOut", "no answer in time"),
)
_CLASSES: Final = (
    (FileNotFoundError, Kind.ABSENT),
    (exceptions.AlreadyExistsError, Kind.CHANGED),
    (exceptions.PreconditionError, Kind.CHANGED),
    (exceptions.NotModifiedError, Kind.NOT_CHANGED),
    (exceptions.PermissionDeniedError, Kind.DENIED),
    (exceptions.UnauthenticatedError, Kind.DENIED),
)


def failure_of(error: Exception) -> Failure:
    """What went wrong in a call of obstore, whose exceptions derive from its `BaseError`, or are builtin ones."""
    text = str(error)[:20_000]
    status = _STATUS.search(text)
    code = next((one or other for one, other in _CODE.findall(text)), "")
    if status is not None:
        reason = f"{status[1]} {code or status[2].strip()}".strip()
        kind = _BY_CODE.get(code) or _by_class(error) or _by_status(int(status[1]))
        return Failure(kind, reason)
    if (of_one := _OF_ONE.search(text)) is not None and not isinstance(error, FileNotFoundError):
        status_or_code = of_one[1]
        by_status = _by_status(int(status_or_code)) if status_or_code.isdigit() else Kind.UNAVAILABLE
        return Failure(_BY_CODE.get(status_or_code, by_status), status_or_code)
    if "Wanted range starting at" in text:
        return Failure(Kind.BEYOND, _first_words(text))
    if "Received non-partial response" in text:
        return Failure(Kind.INVALID, "it sends the whole object if a part is asked for")
    if (known := _by_class(error)) is not None:
        return Failure(known, _first_words(text))
    if "token file" in text or "credential" in text.partition("\n")[0].lower():
        return Failure(Kind.DENIED, f"there are no credentials: {_first_words(text)}", sent=False)
    http = _HTTP_KIND.search(text)
    where = f"{found[1]}: " if (found := _URL.search(text)) else ""
    cause = next((words for part, words in _CAUSES if part in text), "")
    if http is not None and http[1] == "Timeout":
        return Failure(Kind.TIMEOUT, f"{where}no answer in time")
    if http is not None and http[1] == "Connect":
        return Failure(Kind.UNAVAILABLE, f"{where}{cause or 'no connection'}", sent=False)
    if "incorrectly configured region" in text:
        return Failure(Kind.INVALID, "the bucket is in another region: set region", sent=False)
    if "builder error" in text:
        return Failure(Kind.INVALID, f"{where}http:// is not allowed: set allow_http", sent=False)
    return Failure(Kind.UNAVAILABLE, f"{where}{cause or _first_words(text)}")


def _by_class(error: Exception) -> Kind | None:
    return next((kind for kind_of_error, kind in _CLASSES if isinstance(error, kind_of_error)), None)


def _by_status(status: int) -> Kind:
    if found := _BY_STATUS.get(status):
        return found
    return Kind.UNAVAILABLE if status >= 500 or status < 400 else Kind.INVALID


def _first_words(text: str) -> str:
    """The first line, without URLs and their queries."""
    return re.sub(r"https?://\S+", "…", text.partition("\n")[0])[:160]
