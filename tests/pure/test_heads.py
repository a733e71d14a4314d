"""What HEAD of a manifest may mean, and what an answer to GET holds."""

from __future__ import annotations

import base64
import gzip
import json
import zlib

import pytest

from mirror.oci.coding import decode
from mirror.oci.digest import Digest
from mirror.oci.manifest import LARGEST, OCI_MANIFEST, Descriptor
from mirror.oci.signed import signed_payload
from mirror.policy.upstream.heads import WORTH_A_GET, is_worth_a_get, read_head
from mirror.upstream.manifest_answer import read_answer

_DIGEST = Digest.of(b"x")


@pytest.mark.parametrize(
    ("headers", "by_tag", "by_digest"),
    [
        ({"Content-Type": OCI_MANIFEST, "Content-Length": "7", "Docker-Content-Digest": str(_DIGEST)}, True, True),
        ({"Content-Type": f"{OCI_MANIFEST.upper()}; q=1", "Content-Length": "7"}, False, True),
        ({"Content-Type": OCI_MANIFEST, "Content-Length": "0"}, False, False),
        ({"Content-Type": OCI_MANIFEST, "Content-Length": str(LARGEST + 1)}, False, False),
        ({"Content-Type": OCI_MANIFEST, "Content-Length": "-7"}, False, False),
        ({"Content-Type": "text/html", "Content-Length": "7", "Docker-Content-Digest": str(_DIGEST)}, False, False),
        ({"Content-Type": OCI_MANIFEST, "Docker-Content-Digest": str(_DIGEST)}, False, False),
        ({}, False, False),
    ],
)
def test_a_head_says_all_or_nothing(headers: dict[str, str | None], by_tag: bool, by_digest: bool) -> None:
    """The digest may be missing where it was asked for; type and length may not."""
    described = Descriptor(OCI_MANIFEST, _DIGEST, 7)
    assert read_head(headers, "v1") == (described if by_tag else None)
    assert read_head(headers, _DIGEST) == (described if by_digest else None)


def test_statuses_of_head() -> None:
    """Only what asks for a password, or to wait, is believed of HEAD alone."""
    assert {400, 403, 404, 405, 406, 410, 415, 501, 204, 304} <= WORTH_A_GET
    assert not {200, 401, 408, 429, 500, 502, 503, 504} & WORTH_A_GET
    assert all(map(is_worth_a_get, (404, 500, 502, 504)))
    assert not any(map(is_worth_a_get, (None, 401, 429)))


@pytest.mark.parametrize(("coding", "encode"), [("gzip", gzip.compress), ("X-GZIP", gzip.compress)])
def test_a_coding_is_undone(coding: str, encode: object) -> None:
    """As far as it is one, and no further than the limit."""
    assert callable(encode)
    encoded = encode(b"content" * 1000)
    assert decode(encoded, coding, 7000) == b"content" * 1000
    assert len(decode(encoded, coding, 100)) == 100
    assert decode(encoded[:-5], coding, 10_000) == encoded[:-5], "cut short"
    assert decode(b"content", coding, 100) == b"content"
    for none in (None, "", "identity", "br"):
        assert decode(encoded, none, 100) == encoded
    assert decode(zlib.compress(b"content"), "deflate", 100) == b"content"


def _signature(length: object, tail: bytes) -> dict[str, str]:
    text = json.dumps({"formatLength": length, "formatTail": base64.urlsafe_b64encode(tail).decode().rstrip("=")})
    return {"protected": base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")}


_PAYLOAD = b'{"schemaVersion": 1, "fsLayers": []}'


def _signed(*signatures: object, start: bytes = _PAYLOAD[:-1]) -> bytes:
    return start + b', "signatures": ' + json.dumps(signatures).encode() + b"}"


def test_the_payload_of_a_signed_manifest() -> None:
    """The same for any number of signatures."""
    good = _signature(len(_PAYLOAD) - 1, b"}")
    assert signed_payload(_signed(good)) == _PAYLOAD
    assert signed_payload(_signed(good, good)) == _PAYLOAD


@pytest.mark.parametrize(
    "content",
    [
        _PAYLOAD,
        b'"signatures"',
        _signed(),
        _signed("x"),
        _signed({"protected": "%"}),
        _signed({"protected": 5}),
        _signed(_signature(len(_PAYLOAD) - 1, b"}"), _signature(len(_PAYLOAD) - 2, b"]}")),
        _signed(_signature(0, _PAYLOAD)),
        _signed(_signature(-1, b"}")),
        _signed(_signature(10**9, b"}")),
        _signed(_signature("x", b"}")),
        _signed(_signature(len(_PAYLOAD) - 1, b', "a": 1}')),
        _signed(_signature(len(_PAYLOAD) - 1, b"}"), start=_PAYLOAD[:-1] + b', "layers": []'),
        _signed(_signature(len(_PAYLOAD) - 1, b"}"), start=_PAYLOAD[:-1].replace(b": 1", b": 2")),
    ],
)
def test_what_is_no_signed_manifest(content: bytes) -> None:
    """Broken, of two opinions, or saying more than is in the payload: nothing vouches for that."""
    assert signed_payload(content) is None


def test_the_form_that_the_digest_names() -> None:
    """By digest nothing else; by tag the likeliest, unless the header's digest fits the other."""
    plain = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": []}).encode()
    forms = plain, gzip.compress(plain)
    for reference, said in ((Digest.of(plain), None), ("v1", None), ("v1", "junk"), ("v1", str(Digest.of(b"a lie")))):
        found = read_answer(forms, "text/plain", said, reference)
        assert found is not None
        assert (found.content, found.digest) == (plain, Digest.of(plain))
    assert read_answer(forms, None, None, Digest.of(b"another")) is None
    assert read_answer((), None, None, "v1") is None
    long = Digest.of(plain, "sha512")
    by_header = read_answer(forms, None, str(long), "v1")
    assert by_header is not None
    assert by_header.digest == long


def test_a_signed_manifest_has_the_digest_of_its_payload() -> None:
    """And says so, because its own bytes cannot be stored under it; unless it is asked for by that of its bytes."""
    content, payload = _signed(_signature(len(_PAYLOAD) - 1, b"}")), Digest.of(_PAYLOAD)
    for reference, said in ((payload, None), ("v1", None), ("v1", str(payload)), ("v1", str(Digest.of(b"a lie")))):
        found = read_answer((content,), None, said, reference)
        assert found is not None
        assert (found.digest, found.signed, found.content) == (payload, True, content)
    for reference, said in ((Digest.of(content), None), ("v1", str(Digest.of(content)))):
        found = read_answer((content,), None, said, reference)
        assert found is not None
        assert (found.digest, found.signed) == (Digest.of(content), False)
