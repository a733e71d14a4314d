"""What answers look like, before anything is sent."""

from __future__ import annotations

import json

import pytest

from mirror import errors
from mirror.errors import ANSWERS, MirrorError, RangeInvalid, UpstreamDenied, UpstreamThrottled, answer_for
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_MANIFEST
from mirror.oci.span import Span
from mirror.repository.answers import ManifestAnswer, Outcome
from mirror.server.registry.responses import (
    blob_headers,
    cache_status,
    error_response,
    is_unchanged,
    link_to_next,
    manifest_headers,
)

_DIGEST = Digest.of(b"x")

#: distribution-spec, "Error Codes", and those that registries and clients use besides.
_CODES = {
    *("BLOB_UNKNOWN", "DIGEST_INVALID", "MANIFEST_INVALID", "MANIFEST_UNKNOWN", "NAME_INVALID", "NAME_UNKNOWN"),
    *("UNAUTHORIZED", "DENIED", "UNSUPPORTED", "TOOMANYREQUESTS", "UNAVAILABLE", "UNKNOWN", "RANGE_INVALID"),
    *("BLOB_UPLOAD_INVALID", "BLOB_UPLOAD_UNKNOWN", "MANIFEST_BLOB_UNKNOWN", "SIZE_INVALID", "TAG_INVALID"),
    "PAGINATION_NUMBER_INVALID",
}
#: Of the admin API, which registries' clients never see.
_ADMIN_CODES = {"BODY_INVALID", "JOB_UNKNOWN", "PROTECTED", "PIN_UNKNOWN", "RULE_UNKNOWN", "ALREADY_RUNNING", "HOSTED"}


def _all_errors() -> list[type[MirrorError]]:
    found, waiting = [], [MirrorError]
    while waiting:
        one = waiting.pop()
        found.append(one)
        waiting += one.__subclasses__()
    return [one for one in found if one.__module__ == errors.__name__]


@pytest.mark.parametrize("kind", _all_errors(), ids=lambda kind: kind.__name__)
def test_every_error_has_its_row(kind: type[MirrorError]) -> None:
    """The one table knows every error of the one tree, with a status and a code that clients know."""
    answer = ANSWERS[kind]
    assert 400 <= answer.status < 600
    assert answer.code in _CODES | _ADMIN_CODES
    if issubclass(kind, errors.RequestError):
        assert answer.status < 500
    if issubclass(kind, errors.UpstreamError):
        assert answer.status != 500


def test_other_errors_are_answered_like_their_ancestor() -> None:
    """An error without a row of its own is answered like what it is a kind of."""

    class Special(errors.BlobUnknown):
        pass

    assert answer_for(Special("x")) == ANSWERS[errors.BlobUnknown]


def test_401_of_upstream_stays_401() -> None:
    """Clients tell 401 from 403."""
    assert answer_for(UpstreamDenied("x", upstream="x", status=401)).status == 401
    assert answer_for(UpstreamDenied("x", upstream="x", status=403)).status == 403


def test_error_response() -> None:
    """The OCI JSON with code, message and the request's id; for HEAD the same headers and no body."""
    response = error_response(errors.BlobUnknown("no such blob"), "7-1")
    assert isinstance(response.body, bytes)
    [error] = json.loads(response.body)["errors"]
    assert (response.status, error["code"], error["message"]) == (404, "BLOB_UNKNOWN", "no such blob")
    assert error["detail"] == {"request": "7-1", "error": "BlobUnknown"}
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["X-Request-Id"] == "7-1"
    head = error_response(errors.BlobUnknown("no such blob"), "7-1", head=True)
    assert (head.status, head.body) == (404, b"")
    assert head.headers["Content-Length"] == str(len(response.body))


@pytest.mark.parametrize(("seconds", "header"), [(0.2, "1"), (7, "7"), (7.01, "8")])
def test_retry_after(seconds: float, header: str) -> None:
    """Whole seconds, never too early, never 0; a 503 says when to come back too, a 404 does not."""
    throttled = UpstreamThrottled("x", upstream="x", retry_after=seconds)
    assert error_response(throttled, "1").headers["Retry-After"] == header
    assert int(error_response(errors.StoreFull("x"), "1").headers["Retry-After"]) > 0
    assert "Retry-After" not in error_response(errors.BlobUnknown("x"), "1").headers


def test_a_full_disk_is_in_the_status_line() -> None:
    """Of a 5xx, Docker, podman and skopeo show the status line and not the message."""
    full = error_response(errors.NoRoomForPush("no room"), "id")
    assert (full.status, full.reason) == (507, "Insufficient Storage: the disk of the mirror has no room for this push")
    assert error_response(errors.StoreError("x"), "id").reason == "Service Unavailable"


def test_special_headers_of_errors() -> None:
    """416 tells the size (RFC 9110, 15.5.17), 405 what is allowed (15.5.6)."""
    assert error_response(RangeInvalid("x", 10), "1").headers["Content-Range"] == "bytes */10"
    assert error_response(errors.Unsupported("x"), "1").headers["Allow"] == "GET, HEAD"


@pytest.mark.parametrize("outcome", Outcome)
def test_cache_status(outcome: Outcome) -> None:
    """Every outcome has its word (RFC 9211): a cache's name, then `hit` or why it went forward, never both."""
    name, *parameters = cache_status(outcome).split("; ")
    assert name == "mirror"
    assert ("hit" in parameters) != any(parameter.startswith("fwd=") for parameter in parameters)


@pytest.mark.parametrize("outcome", Outcome)
def test_manifest_headers(outcome: Outcome) -> None:
    """All that clients take for granted; a warning on an old one alone."""
    headers = manifest_headers(ManifestAnswer(_DIGEST, OCI_MANIFEST, 7, None, outcome, "x"))
    assert headers["Content-Type"] == OCI_MANIFEST
    assert headers["Content-Length"] == "7"
    assert headers["Docker-Content-Digest"] == str(_DIGEST)
    assert headers["ETag"] == f'"{_DIGEST}"'
    assert headers["Docker-Distribution-API-Version"] == "registry/2.0"
    assert headers.get("Warning", "").startswith("299 ") == outcome.is_old


@pytest.mark.parametrize(
    "kind", ["text/html", "image/svg+xml", "", "application/x\r\nSet-Cookie: a", "application/x\x01"]
)
def test_80_no_page_from_our_origin(kind: str) -> None:
    """Row 80: whatever is remembered as a manifest's type, a browser gets bytes, and a header nothing but a type."""
    headers = manifest_headers(ManifestAnswer(_DIGEST, kind, 7, None, Outcome.HIT, "x"))
    assert headers["Content-Type"] == "application/octet-stream"


def test_blob_headers() -> None:
    """Whole, in part, and of unknown length, where no length is claimed."""
    assert blob_headers(_DIGEST, 10, Outcome.HIT)["Content-Length"] == "10"
    part = blob_headers(_DIGEST, 10, Outcome.HIT, Span(3, 6))
    assert (part["Content-Length"], part["Content-Range"]) == ("3", "bytes 3-5/10")
    unknown = blob_headers(_DIGEST, None, Outcome.MISS)
    assert not {"Content-Length", "Content-Range"} & unknown.keys()
    for headers in (part, unknown):
        assert headers["Docker-Content-Digest"] == str(_DIGEST)
        assert headers["Accept-Ranges"] == "bytes"


@pytest.mark.parametrize(
    ("header", "unchanged"),
    [
        (None, False),
        ("", False),
        (f'"{_DIGEST}"', True),
        (f'W/"{_DIGEST}"', True),
        (f'"a", W/"b" ,"{_DIGEST}"', True),
        ("*", True),
        ('"other"', False),
        (f'"{_DIGEST}x"', False),
    ],
)
def test_if_none_match(header: str | None, unchanged: bool) -> None:
    """RFC 9110, 13.1.2: any of a list, weak or strong, or `*`."""
    assert is_unchanged(header, _DIGEST) is unchanged


def test_link() -> None:
    """Our own path, as the client said it, and nothing that could end the header or the URL early."""
    assert link_to_next("a/b", 5, "v1", {}) == '</v2/a/b/tags/list?n=5&last=v1>; rel="next"'
    assert link_to_next("a", 5, "v1", {"ns": "ghcr.io", "x": "y"}).endswith('&ns=ghcr.io>; rel="next"')
    odd = link_to_next("a", 5, 'x>\r\n&"', {"ns": "h:1>\r\n"})
    assert "\r" not in odd
    assert odd.count(">") == 1
