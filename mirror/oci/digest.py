"""Digests: the names of content (image-spec, descriptor.md, "Digests")."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from mirror.errors import DigestInvalid

#: The supported algorithms of those that the image-spec registers, and the number of hex digits of their digests.
HEX_LENGTHS: Final = {"sha256": 64, "sha512": 128}

_HEX: Final = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A digest, `algorithm:hex`. Made only by `parse` or `of`, so `hex` is safe as a file name."""

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Parse `sha256:…` or `sha512:…`, with lower-case hex only. Raises `DigestInvalid`."""
        algorithm, colon, encoded = text.partition(":")
        length = HEX_LENGTHS.get(algorithm)
        if not colon or length is None:
            raise DigestInvalid(f"not a digest of a supported algorithm ({', '.join(HEX_LENGTHS)}): {text[:160]!r}")
        if len(encoded) != length or not _HEX.issuperset(encoded):
            raise DigestInvalid(f"a {algorithm} digest has {length} lower-case hex digits: {text[:160]!r}")
        return cls(algorithm, encoded)

    @classmethod
    def of(cls, content: bytes, algorithm: str = "sha256") -> Digest:
        """The digest of bytes in memory."""
        return cls(algorithm, hashlib.new(algorithm, content).hexdigest())

    def matches(self, content: bytes) -> bool:
        """Whether this digest names exactly these bytes."""
        return hashlib.new(self.algorithm, content).hexdigest() == self.hex

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


def hasher(digest: Digest) -> hashlib._Hash:
    """A fresh hash object of the digest's algorithm."""
    return hashlib.new(digest.algorithm)
