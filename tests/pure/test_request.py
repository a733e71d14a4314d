"""From a request target to one checked value."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mirror.errors import (
    DigestInvalid,
    NameInvalid,
    NotServed,
    PageInvalid,
    RequestError,
    TagInvalid,
    TooManyTags,
    UploadUnknown,
)
from mirror.oci.digest import Digest
from mirror.oci.request import Kind, RegistryRequest, parse_page, parse_request

_DIGEST = Digest.of(b"")


@pytest.mark.parametrize(
    ("target", "wanted"),
    [
        ("/v2/", RegistryRequest(Kind.BASE)),
        ("/v2", RegistryRequest(Kind.BASE)),
        ("/v2/?ns=a.b", RegistryRequest(Kind.BASE, query={"ns": "a.b"})),
        ("/v2/a/manifests/v1", RegistryRequest(Kind.MANIFEST, "a", "v1")),
        ("/v2/a/b/c/manifests/v1?ns=a.b&x=", RegistryRequest(Kind.MANIFEST, "a/b/c", "v1", {"ns": "a.b"})),
        (f"/v2/a/manifests/{_DIGEST}", RegistryRequest(Kind.MANIFEST, "a", _DIGEST)),
        ("/v2/a/manifests/" + str(_DIGEST).replace(":", "%3A"), RegistryRequest(Kind.MANIFEST, "a", _DIGEST)),
        (f"/v2/a/blobs/{_DIGEST}", RegistryRequest(Kind.BLOB, "a", _DIGEST)),
        (
            f"/v2/a/referrers/{_DIGEST}?artifactType=a%2Fb",
            RegistryRequest(Kind.REFERRERS, "a", _DIGEST, {"artifactType": "a/b"}),
        ),
        ("/v2/a/tags/list?n=5&last=x", RegistryRequest(Kind.TAGS, "a", None, {"n": "5", "last": "x"})),
        ("/v2/a/blobs/uploads/", RegistryRequest(Kind.UPLOAD, "a")),
        ("/v2/a/blobs/uploads", RegistryRequest(Kind.UPLOAD, "a")),
        ("/v2/a/b/blobs/uploads/some-id", RegistryRequest(Kind.UPLOAD, "a/b", session="some-id")),
        (
            f"/v2/a/blobs/uploads/?mount={_DIGEST}&from=b%2Fc",
            RegistryRequest(Kind.UPLOAD, "a", query={"mount": str(_DIGEST), "from": "b/c"}),
        ),
        (
            f"/v2/a/manifests/{_DIGEST}?tag=v1&x=y&tag=v2",
            RegistryRequest(Kind.MANIFEST, "a", _DIGEST, {"tag": "v1", "x": "y"}, tags=("v1", "v2")),
        ),
        # names may hold the words of the API
        ("/v2/manifests/manifests/manifests", RegistryRequest(Kind.MANIFEST, "manifests", "manifests")),
        ("/v2/a/tags/list/manifests/v1", RegistryRequest(Kind.MANIFEST, "a/tags/list", "v1")),
        (f"/v2/a/manifests/blobs/{_DIGEST}", RegistryRequest(Kind.BLOB, "a/manifests", _DIGEST)),
        ("/v2/blobs/tags/list", RegistryRequest(Kind.TAGS, "blobs")),
        ("/v2/blobs/blobs/uploads/", RegistryRequest(Kind.UPLOAD, "blobs")),
        ("/v2/a/blobs/uploads/blobs/uploads/list", RegistryRequest(Kind.UPLOAD, "a/blobs/uploads", session="list")),
        ("/v2/a/blobs/uploads/manifests/uploads", RegistryRequest(Kind.MANIFEST, "a/blobs/uploads", "uploads")),
        ("/v2/a/blobs/uploads/tags/list", RegistryRequest(Kind.TAGS, "a/blobs/uploads")),
        # the first of a repeated parameter counts
        ("/v2/a/tags/list?n=1&n=2", RegistryRequest(Kind.TAGS, "a", None, {"n": "1"})),
    ],
)
def test_targets(target: str, wanted: RegistryRequest) -> None:
    """The resources of the API (distribution-spec, "Endpoints")."""
    assert parse_request(target) == wanted


@pytest.mark.parametrize(
    ("target", "error"),
    [
        ("/", NotServed),
        ("", NotServed),
        ("/v1/", NotServed),
        ("/v20/", NotServed),
        ("/v2/a", NotServed),
        ("/v2/a/b", NotServed),
        ("/v2/a/tags/other", NotServed),
        ("/V2/a/manifests/v1", NotServed),
        ("/v2/a/tags/list?" + "a=1&" * 65, NotServed),
        ("/v2/a/blobs/uploads/x/y", NotServed),
        ("/v2/a/uploads/x", NotServed),
        ("/v2/blobs/uploads/", NameInvalid),
        ("/v2/blobs/uploads/x", NameInvalid),
        ("/v2/a/blobs/uploads/..%2Fx", NotServed),
        ("/v2/a/blobs/uploads/a%20b", UploadUnknown),
        ("/v2/a/blobs/uploads/" + "a" * 201, UploadUnknown),
        ("/v2/a/manifests/v1?tag=a/b", TagInvalid),
        ("/v2/a/manifests/v1?" + "tag=a&" * 33, TooManyTags),
        ("/v2/a/manifests/v1?" + "tag=a&" * 65, TooManyTags),
        ("/v2/manifests/v1", NameInvalid),
        ("/v2/tags/list", NameInvalid),
        (f"/v2/blobs/{_DIGEST}", NameInvalid),
        ("/v2/a/manifests/", TagInvalid),
        ("/v2/a/manifests/..", TagInvalid),
        ("/v2/a/manifests/a%20b", TagInvalid),
        ("/v2/a/blobs/v1", DigestInvalid),
        ("/v2/a/manifests/sha256:x", DigestInvalid),
        (f"/v2/a/blobs/{_DIGEST}%00", DigestInvalid),
        ("/v2/a/referrers/latest", DigestInvalid),
    ],
)
def test_refused(target: str, error: type[RequestError]) -> None:
    """Each with its own error, which tells the code of the answer."""
    with pytest.raises(error):
        parse_request(target)


@given(
    st.lists(
        st.sampled_from(
            ["/v2/", "a", "/", "..", "%2e", "%2F", "%", "%zz", "manifests", "blobs", "?", "&", "=", "é", "\0"]
        )
    )
)
@example(["/v2/", "%25", "2e"])
def test_31_any_target(pieces: list[str]) -> None:
    """Row 31: whatever comes is refused as the client's doing, or has a checked reference; decoded once, not twice."""
    target = "".join(pieces)
    try:
        request = parse_request(target)
    except RequestError:
        return
    if request.kind is Kind.BLOB:
        assert isinstance(request.reference, Digest)
    if request.kind is Kind.MANIFEST:
        assert isinstance(request.reference, Digest) or "/" not in request.reference  # type: ignore[operator]


_WORDS = ["a", "blobs", "uploads", "tags", "list", "manifests", "referrers", "v2", "_catalog"]


@given(
    st.lists(st.sampled_from(_WORDS[:-1]), min_size=1, max_size=6).map("/".join),
    st.sampled_from(
        [
            (Kind.UPLOAD, "blobs/uploads/"),
            (Kind.UPLOAD, "blobs/uploads/list"),
            (Kind.BLOB, f"blobs/{_DIGEST}"),
            (Kind.MANIFEST, "manifests/uploads"),
            (Kind.MANIFEST, "manifests/_catalog"),
            (Kind.TAGS, "tags/list"),
            (Kind.REFERRERS, f"referrers/{_DIGEST}"),
        ]
    ),
)
def test_108_names_like_resources(name: str, resource: tuple[Kind, str]) -> None:
    """Row 108: a repository may be called like a resource; each request still has one meaning."""
    request = parse_request(f"/v2/{name}/{resource[1]}")
    assert (request.kind, request.name) == (resource[0], name)


@pytest.mark.parametrize(
    ("query", "page"),
    [
        ({}, (100, "")),
        ({"n": "5"}, (5, "")),
        ({"n": "0"}, (0, "")),
        ({"n": "007", "last": "x"}, (7, "x")),
        ({"n": "101"}, (100, "")),
        ({"n": "9" * 18}, (100, "")),
        ({"last": "x"}, (100, "x")),
    ],
)
def test_page(query: dict[str, str], page: tuple[int, str]) -> None:
    """`n` is clamped (CVE-2023-2253)."""
    assert parse_page(query, most=100) == page


@pytest.mark.parametrize("n", ["", "-1", "+1", "1.0", "1e3", "x", " 1", "9" * 19, "٣", "²"])
def test_no_page(n: str) -> None:
    """What is no plain number is refused rather than guessed at."""
    with pytest.raises(PageInvalid):
        parse_page({"n": n}, most=100)


def test_a_request_without_digest_has_none() -> None:
    """Asking a tag for its digest is a mistake of ours, and loud."""
    with pytest.raises(TypeError):
        _ = parse_request("/v2/a/manifests/v1").digest


def test_the_catalog() -> None:
    """By its own path alone."""
    assert parse_request("/v2/_catalog?n=5") == RegistryRequest(Kind.CATALOG, query={"n": "5"})
    with pytest.raises(NotServed):
        parse_request("/v2/_catalog/x")
