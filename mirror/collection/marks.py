"""A set of digests in a few bytes each.

A digest is remembered as a salted hash of 64 bits. Two digests may share a hash, so a digest may be found that was
never added, though never the reverse: what asks here keeps more than it needs, once in a very long time. The salt is
drawn anew for each set, so nothing stays by chance for ever, and nobody can choose digests that share a hash.
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_left
from hashlib import blake2b
from typing import Final

from mirror.oci.digest import Digest

#: Hashes are spread over so many lists, each of which is sorted when it is first searched: no call takes long.
_LISTS: Final = 4096


class Marks:
    """Digests that were met. Takes about ten bytes for each of a million."""

    def __init__(self) -> None:
        self._salt = os.urandom(16)
        self._lists: dict[int, array[int]] = {}
        self._unsorted: set[int] = set()
        self._count = 0

    def __repr__(self) -> str:
        return f"<Marks {self._count}>"

    def add(self, digest: Digest) -> None:
        """Adds a digest. Repeatable, but takes room each time."""
        number, hashed = self._hash(digest)
        marks = self._lists.get(number)
        if marks is None:
            marks = self._lists[number] = array("Q")
        marks.append(hashed)
        self._unsorted.add(number)
        self._count += 1

    def __contains__(self, digest: Digest) -> bool:
        number, hashed = self._hash(digest)
        marks = self._lists.get(number)
        if marks is None:
            return False
        if number in self._unsorted:
            self._unsorted.discard(number)
            marks = self._lists[number] = array("Q", sorted(marks))
        at = bisect_left(marks, hashed)
        return at < len(marks) and marks[at] == hashed

    def _hash(self, digest: Digest) -> tuple[int, int]:
        name = f"{digest.algorithm}:{digest.hex}".encode()
        hashed = int.from_bytes(blake2b(name, digest_size=8, key=self._salt).digest(), "big")
        return hashed % _LISTS, hashed
