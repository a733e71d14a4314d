"""Digests as names of content."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.errors import DigestInvalid
from mirror.oci.digest import HEX_LENGTHS, Digest, hasher


@given(st.binary(max_size=200), st.sampled_from(sorted(HEX_LENGTHS)))
def test_of_bytes(content: bytes, algorithm: str) -> None:
    """A digest of bytes is what the algorithm says, reads back from its own text, and matches these bytes alone."""
    digest = Digest.of(content, algorithm)
    assert digest.hex == hashlib.new(algorithm, content).hexdigest()
    assert Digest.parse(str(digest)) == digest
    assert digest.matches(content)
    assert not digest.matches(content + b"\0")
    hashing = hasher(digest)
    hashing.update(content)
    assert hashing.hexdigest() == digest.hex


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "sha256:",
        "sha256",
        "a" * 64,
        "sha256:" + "a" * 63,
        "sha256:" + "a" * 65,
        "sha256:" + "A" * 64,
        "sha256:" + "g" * 64,
        "sha256:" + "a" * 63 + "\n",
        "sha256:" + "a" * 64 + "\n",
        " sha256:" + "a" * 64,
        "SHA256:" + "a" * 64,
        "sha512:" + "a" * 64,
        "sha256:" + "a" * 128,
        "md5:" + "a" * 32,
        "sha256:" + "a" * 61 + "../",
        "sha256::" + "a" * 64,
        "sha256:" + "٠" * 64,
        "sha256+b64:" + "a" * 64,
    ],
)
def test_not_a_digest(text: str) -> None:
    """What is no registered digest in lower-case hex of the right length is refused."""
    with pytest.raises(DigestInvalid):
        Digest.parse(text)


@given(st.text(max_size=200))
def test_any_text(text: str) -> None:
    """Whatever comes: refused, or a value that is safe as a file name."""
    try:
        digest = Digest.parse(text)
    except DigestInvalid:
        return
    assert digest.hex.isalnum()
    assert str(digest) == text


def test_same_hex_of_two_algorithms() -> None:
    """The algorithm is part of the name."""
    assert Digest("sha256", "a" * 64) != Digest("sha512", "a" * 64)
