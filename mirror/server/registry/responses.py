"""What answers look like: headers of each kind, and errors as the specification writes them.

Decisions only; nothing here is sent.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Final
from urllib.parse import quote

from aiohttp import web

from mirror.errors import MirrorError, RangeInvalid, TooManyLogins, Unauthorized, UpstreamThrottled, answer_for
from mirror.oci.digest import Digest
from mirror.oci.manifest import is_manifest_type
from mirror.oci.span import Span
from mirror.repository.content import ManifestAnswer, Outcome

__all__ = [
    "API_VERSION",
    "INERT",
    "SERVER",
    "blob_headers",
    "cache_status",
    "error_body",
    "error_response",
    "is_unchanged",
    "link_to_next",
    "manifest_headers",
    "stale_warning",
]

#: On every answer: aiohttp would tell its own version and Python's, which are nobody's business.
SERVER: Final = {"Server": "mirror"}

#: On every answer of the public listener. A browser that is shown one neither guesses its type nor runs anything in it:
#: manifests and names are written by others (WHATWG Fetch, "X-Content-Type-Options"; CSP Level 3, "sandbox").
INERT: Final = {
    **SERVER,
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "sandbox; default-src 'none'",
}

#: On every answer of the API. Docker's clients take the version as the sign of a registry.
API_VERSION: Final = {"Docker-Distribution-API-Version": "registry/2.0", **INERT}

_STALE_WARNING: Final = '299 - "upstream is unavailable, this answer is an older one"'

#: Seconds after which a client may ask again what failed for a passing reason.
_RETRY_AFTER: Final = 5

#: RFC 9211. The name before the semicolon is that of the cache.
_CACHE_STATUS: Final = {
    Outcome.HIT: "mirror; hit",
    Outcome.MISS: "mirror; fwd=uri-miss; stored",
    Outcome.JOINED: "mirror; fwd=uri-miss; collapsed; stored",
    Outcome.REVALIDATED: "mirror; fwd=stale; fwd-status=200",
    Outcome.STALE: "mirror; hit; detail=upstream-unavailable",
    Outcome.BYPASS: "mirror; fwd=bypass",
    Outcome.DESCRIBED: "mirror; hit; detail=described",
    Outcome.ASKED: "mirror; fwd=uri-miss",
    Outcome.NONE: "mirror; fwd=request",
}


def cache_status(outcome: Outcome) -> str:
    """The `Cache-Status` of an outcome."""
    return _CACHE_STATUS[outcome]


def stale_warning() -> dict[str, str]:
    """For an answer that upstream could not confirm (RFC 7234, 5.5.7: registries and their clients still use it)."""
    return {"Warning": _STALE_WARNING}


def manifest_headers(answer: ManifestAnswer) -> dict[str, str]:
    """For GET and HEAD alike; clients take digest, type and length of a HEAD for granted."""
    digest = str(answer.digest)
    headers = {
        **API_VERSION,
        "Content-Type": _content_type(answer.media_type),
        "Content-Length": str(answer.size),
        "Docker-Content-Digest": digest,
        "ETag": f'"{digest}"',
        "Cache-Status": _CACHE_STATUS[answer.outcome],
    }
    if answer.outcome is Outcome.STALE:
        headers["Warning"] = _STALE_WARNING
    elif answer.kept is not None:
        headers["Cache-Status"] = f"{headers['Cache-Status'].partition('; detail=')[0]}; detail={answer.kept.value}"
    return headers


@lru_cache(256)
def _content_type(media_type: str) -> str:
    """Whatever has been read or remembered of a manifest's type, a browser is never given a page of it."""
    return media_type if is_manifest_type(media_type) else "application/octet-stream"


def blob_headers(digest: Digest, size: int | None, outcome: Outcome, span: Span | None = None) -> dict[str, str]:
    """For a whole blob of `size` bytes (None: not known, sent in chunks) or a part of it."""
    text = str(digest)
    headers = {
        **API_VERSION,
        "Content-Type": "application/octet-stream",
        "Docker-Content-Digest": text,
        "ETag": f'"{text}"',
        "Accept-Ranges": "bytes",
        # a digest's bytes never change
        "Cache-Control": "max-age=31536000, immutable",
        "Cache-Status": _CACHE_STATUS[outcome],
    }
    if span is not None:
        headers["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/{size}"
        headers["Content-Length"] = str(span.length)
    elif size is not None:
        headers["Content-Length"] = str(size)
    return headers


def is_unchanged(if_none_match: str | None, tag: Digest | str) -> bool:
    """Whether the client has the very bytes of this entity tag already (RFC 9110, 13.1.2)."""
    if not if_none_match:
        return False
    tags = {one.strip().removeprefix("W/").strip('"') for one in if_none_match.split(",")}
    return str(tag) in tags or "*" in tags


def error_body(error: MirrorError, request_id: str) -> bytes:
    """distribution-spec, "Error Codes". The detail says which request it was, for whoever looks into the log."""
    code = answer_for(error).code
    entry = {"code": code, "message": error.public, "detail": {"request": request_id, "error": type(error).__name__}}
    return json.dumps({"errors": [entry]}).encode()


def error_response(error: MirrorError, request_id: str, *, head: bool = False) -> web.Response:
    """An error that was raised before anything was sent."""
    body = error_body(error, request_id)
    status = answer_for(error).status
    headers = {**API_VERSION, "Content-Type": "application/json", "X-Request-Id": request_id}
    if isinstance(error, UpstreamThrottled):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    elif status == 503 or isinstance(error, TooManyLogins):
        headers["Retry-After"] = str(_RETRY_AFTER)
    if isinstance(error, Unauthorized) and error.challenge is not None:
        headers["WWW-Authenticate"] = error.challenge
    if isinstance(error, RangeInvalid):
        headers["Content-Range"] = f"bytes */{error.size}"
    if status == 405:
        headers["Allow"] = "GET, HEAD"
    if head:
        headers["Content-Length"] = str(len(body))
        body = b""
    return web.Response(status=status, body=body, headers=headers)


def link_to_next(name: str, count: int, last: str, query: Mapping[str, str]) -> str:
    """The `Link` to the next page of a tag list, with our own path (distribution-spec, "Listing Tags")."""
    namespace = f"&ns={quote(query['ns'], safe='')}" if "ns" in query else ""
    return f'</v2/{quote(name)}/tags/list?n={count}&last={quote(last, safe="")}{namespace}>; rel="next"'
