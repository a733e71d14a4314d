"""The form of answers: the headers of each kind, and errors as the specification defines them.

This module sends nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Final
from urllib.parse import quote

from aiohttp import web

from mirror.errors import (
    BucketUnavailable,
    ManifestBlobUnknown,
    MirrorError,
    RangeInvalid,
    TooManyLogins,
    TooManyUploads,
    Unauthorized,
    Unsupported,
    UpstreamThrottled,
    answer_for,
)
from mirror.oci.digest import Digest
from mirror.oci.manifest import is_manifest_type
from mirror.oci.span import Span
from mirror.repository.answers import ManifestAnswer, Outcome

#: On every answer. Otherwise aiohttp would disclose its own version and Python's.
SERVER: Final = {"Server": "mirror"}

#: On every answer of the public listener. A browser then neither guesses the content's type nor runs anything in it:
#: manifests and names are written by others (WHATWG Fetch, "X-Content-Type-Options"; CSP Level 3, "sandbox").
INERT: Final = {
    **SERVER,
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "sandbox; default-src 'none'",
}

#: On every answer of the API. Docker's clients recognise a registry by the version header.
API_VERSION: Final = {"Docker-Distribution-API-Version": "registry/2.0", **INERT}

#: The `Warning` of an answer that nobody could confirm (RFC 7234, 5.5.7: registries and their clients still use it).
_WARNINGS: Final = {
    Outcome.STALE: '299 - "upstream is unavailable, this answer is an older one"',
    Outcome.LAST_SEEN: '299 - "the bucket is unavailable, this answer is an older one"',
}

#: Seconds after which a client may retry a request that failed for a temporary reason.
_RETRY_AFTER: Final = 5

#: Most digests that an error about a manifest's missing content lists.
_MOST_MISSING: Final = 100

#: `Cache-Status` values (RFC 9211); the name before the semicolon is that of the cache.
_CACHE_STATUS: Final = {
    Outcome.HIT: "mirror; hit",
    Outcome.MISS: "mirror; fwd=uri-miss; stored",
    Outcome.JOINED: "mirror; fwd=uri-miss; collapsed; stored",
    Outcome.REVALIDATED: "mirror; fwd=stale; fwd-status=200",
    Outcome.STALE: "mirror; hit; detail=upstream-unavailable",
    Outcome.LAST_SEEN: "mirror; hit; detail=bucket-unavailable",
    Outcome.BYPASS: "mirror; fwd=bypass",
    Outcome.DESCRIBED: "mirror; hit; detail=described",
    Outcome.ASKED: "mirror; fwd=uri-miss",
    Outcome.REDIRECTED: "mirror; hit; detail=redirected",
    Outcome.NONE: "mirror; fwd=request",
}


def cache_status(outcome: Outcome) -> str:
    """The `Cache-Status` value of an outcome."""
    return _CACHE_STATUS[outcome]


def age_warning(outcome: Outcome) -> dict[str, str]:
    """The header that says that there may be a newer answer; none for all other outcomes."""
    warning = _WARNINGS.get(outcome)
    return {} if warning is None else {"Warning": warning}


def manifest_headers(answer: ManifestAnswer) -> dict[str, str]:
    """Headers for GET and HEAD alike; clients rely on the digest, type and length of a HEAD."""
    digest = str(answer.digest)
    headers = {
        **API_VERSION,
        "Content-Type": _content_type(answer.media_type),
        "Content-Length": str(answer.size),
        "Docker-Content-Digest": digest,
        "ETag": f'"{digest}"',
        "Cache-Status": _CACHE_STATUS[answer.outcome],
    }
    if answer.outcome.is_old:
        headers |= age_warning(answer.outcome)
    elif answer.override is not None:
        headers["Cache-Status"] = f"{headers['Cache-Status'].partition('; detail=')[0]}; detail={answer.override.value}"
    return headers


@lru_cache(256)
def _content_type(media_type: str) -> str:
    """The type if it is that of a manifest, else a neutral one, so that a browser never renders a manifest as a
    page.
    """
    return media_type if is_manifest_type(media_type) else "application/octet-stream"


def blob_headers(digest: Digest, size: int | None, outcome: Outcome, span: Span | None = None) -> dict[str, str]:
    """Headers of a whole blob of `size` bytes (None: unknown, sent in chunks), or of the part `span` of it."""
    text = str(digest)
    headers = {
        **API_VERSION,
        "Content-Type": "application/octet-stream",
        "Docker-Content-Digest": text,
        "ETag": f'"{text}"',
        "Accept-Ranges": "bytes",
        # the content of a digest never changes
        "Cache-Control": "max-age=31536000, immutable",
        "Cache-Status": _CACHE_STATUS[outcome],
    }
    if span is not None:
        headers["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/{size}"
        headers["Content-Length"] = str(span.length)
    elif size is not None:
        headers["Content-Length"] = str(size)
    return headers


def unverified_headers(digest: Digest, size: int, outcome: Outcome, span: Span) -> dict[str, str]:
    """Headers of the part `span` of a blob of `size` bytes that is not verified yet. No cache may keep it, or join it
    to other parts (RFC 9111, 3.4): it has no entity tag.
    """
    headers = blob_headers(digest, size, outcome, span)
    del headers["ETag"]
    headers["Cache-Control"] = "no-store"
    headers["Cache-Status"] = f"{_CACHE_STATUS[outcome].partition('; detail=')[0]}; detail=unverified"
    return headers


def redirect_headers(digest: Digest) -> dict[str, str]:
    """The headers of an answer that sends the client elsewhere for a blob. Nobody may keep it: the URL is a secret."""
    return {
        **API_VERSION,
        "Docker-Content-Digest": str(digest),
        "Cache-Control": "no-store",
        "Cache-Status": _CACHE_STATUS[Outcome.REDIRECTED],
    }


def is_unchanged(if_none_match: str | None, current: Digest | str) -> bool:
    """True if the client already has the content of this entity tag (RFC 9110, 13.1.2)."""
    if not if_none_match:
        return False
    tags = {tag.strip().removeprefix("W/").strip('"') for tag in if_none_match.split(",")}
    return str(current) in tags or "*" in tags


def error_body(error: MirrorError, request_id: str) -> bytes:
    """The JSON of an error (distribution-spec, "Error Codes"). Its detail names the request, so that it can be found in
    the log. Missing content of a manifest has an entry for each digest.
    """
    code = answer_for(error).code
    detail = {"request": request_id, "error": type(error).__name__}
    missing = error.digests[:_MOST_MISSING] if isinstance(error, ManifestBlobUnknown) else ()
    entries = [{"code": code, "message": error.public, "detail": {**detail, "digest": digest}} for digest in missing]
    return json.dumps({"errors": entries or [{"code": code, "message": error.public, "detail": detail}]}).encode()


def error_response(
    error: MirrorError, request_id: str, *, head: bool = False, more: Mapping[str, str] | None = None
) -> web.Response:
    """The answer for an error raised before anything was sent. `more` are headers that do not depend on the error."""
    body = error_body(error, request_id)
    answer = answer_for(error)
    status = answer.status
    headers = {**(more or {}), **API_VERSION, "Content-Type": "application/json", "X-Request-Id": request_id}
    if isinstance(error, UpstreamThrottled | BucketUnavailable):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    elif status == 503 or isinstance(error, TooManyLogins | TooManyUploads):
        headers["Retry-After"] = str(_RETRY_AFTER)
    if isinstance(error, Unauthorized) and error.challenge is not None:
        headers["WWW-Authenticate"] = error.challenge
    if isinstance(error, RangeInvalid):
        headers["Content-Range"] = f"bytes */{error.size}"
    if isinstance(error, Unsupported):
        headers["Allow"] = ", ".join(error.allowed)
    elif status == 405:
        headers["Allow"] = "GET, HEAD"
    if head:
        headers["Content-Length"] = str(len(body))
        body = b""
    return web.Response(status=status, reason=answer.reason, body=body, headers=headers)


def link_to_next(name: str, count: int, last: str, query: Mapping[str, str]) -> str:
    """The `Link` header to the next page of a tag list, with our own path (distribution-spec, "Listing Tags")."""
    namespace = f"&ns={quote(query['ns'], safe='')}" if "ns" in query else ""
    return f'</v2/{quote(name)}/tags/list?n={count}&last={quote(last, safe="")}{namespace}>; rel="next"'


def link_to_referrers(name: str, digest: Digest, last: str, query: Mapping[str, str]) -> str:
    """The `Link` header to the next page of referrers (distribution-spec, "Listing Referrers")."""
    kept = "".join(f"&{key}={quote(query[key], safe='')}" for key in ("artifactType", "ns") if key in query)
    return f'</v2/{quote(name)}/referrers/{digest}?last={quote(last, safe="")}{kept}>; rel="next"'
