"""Writes an index of many blobs at once, as the same calls of a mirror would leave it, in a fraction of the time.

Every image is a manifest and its blobs, which no other image has; a hundred images are a repository. Digests are spread
over all that there are, but can be counted in their order, so that a file of ten million is written from its beginning
to its end. A test compares what is written here with what the index writes.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from redis import Redis

from mirror.aio.batches import batches
from mirror.index.redis import Keys
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.records import ContentRecord, References
from mirror.ports import ContentIndex

#: Blobs of an image, with its manifest.
PER_IMAGE: Final = 5
PER_REPOSITORY: Final = 100
#: Bytes of each blob.
SIZE: Final = 10
#: When each blob that is no manifest was used; manifests were used one after the other.
_USED_AT: Final = 1.0
#: Items of one command of Redis.
_AT_ONCE: Final = 1000
_DIGITS: Final = 12


@dataclass(frozen=True)
class MadeContent:
    """So many images, of `PER_IMAGE` blobs each. `series` keeps the blobs of several of them apart."""

    images: int
    series: int = 0

    @cached_property
    def blobs(self) -> int:
        return self.images * PER_IMAGE

    def digest(self, image: int, part: int) -> Digest:
        """The manifest of an image (part 0), or one of its blobs."""
        return Digest.parse(self.text(image * PER_IMAGE + part))

    def parts(self, image: int) -> Sequence[Digest]:
        """The blobs that an image names."""
        return [self.digest(image, part) for part in range(1, PER_IMAGE)]

    def repo(self, image: int) -> Repo:
        return Repo("docker.io", f"team-{self.series}/app-{image // PER_REPOSITORY:06d}")

    def text(self, number: int) -> str:
        """A digest, given by the number of its image times `PER_IMAGE`, plus its part."""
        place = number * self._step % self.blobs
        # no two series share a place
        first = (place * 16 + self.series) * (16 ** (_DIGITS - 1)) // self.blobs
        return f"sha256:{first:0{_DIGITS}x}{number:0{64 - _DIGITS}x}"

    def in_order(self) -> Iterator[tuple[str, int]]:
        """All digests, sorted, with their numbers."""
        inverse, number = pow(self._step, -1, self.blobs), 0
        for _ in range(self.blobs):
            yield self.text(number), number
            number = (number + inverse) % self.blobs

    @cached_property
    def _step(self) -> int:
        # neighbours in an image are far from each other
        step = int(self.blobs * 0.381966) | 1
        while math.gcd(step, self.blobs) != 1:
            step += 2
        return step


async def write_by_calls(index: ContentIndex, made: MadeContent) -> None:
    """As a mirror writes images that were pulled: links, the manifest, what it names, and then its blobs."""
    for repo, group in groupby(range(made.images), made.repo):
        for images in batches(group, 10):
            for image in images:
                manifest, parts = made.digest(image, 0), made.parts(image)
                await index.link(repo, dict.fromkeys([manifest, *parts], SIZE))
                await index.put([ContentRecord(manifest, SIZE, float(image))])
                await index.record_references([References(manifest, (), tuple(parts))])
            await index.put([ContentRecord(part, SIZE, _USED_AT) for image in images for part in made.parts(image)])


# ------------------------------------------------------------------------------------------------------------- SQLite


def write_sqlite(path: Path, made: MadeContent) -> None:
    """Blocking: into the file of an `EmbeddedIndex` that is empty, and not open."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA cache_size = -200000")
        found = "SELECT type, name, sql FROM sqlite_master WHERE type IN ('index', 'trigger') AND sql IS NOT NULL"
        later = connection.execute(found).fetchall()
        for kind, name, _ in later:
            connection.execute(f"DROP {kind} {name}")
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO content VALUES (?, ?, ?, ?, ?, ?)", _content_rows(made))
        connection.executemany("INSERT INTO edges VALUES (?, ?, 0)", _edge_rows(made))
        connection.executemany("INSERT INTO links VALUES (?, ?, ?)", _link_rows(made))
        connection.execute("UPDATE usage SET blobs = ?, bytes = ?", (made.blobs, made.blobs * SIZE))
        connection.execute("COMMIT")
        for _, _, text in sorted(later):
            connection.execute(text)
        connection.execute("PRAGMA journal_mode = WAL")


def _content_rows(made: MadeContent) -> Iterator[tuple[Any, ...]]:
    for digest, number in made.in_order():
        image, part = divmod(number, PER_IMAGE)
        if part:
            yield digest, SIZE, _USED_AT, 1, 0, None
        else:
            names = json.dumps([(made.text(number + each), 0) for each in range(1, PER_IMAGE)])
            yield digest, SIZE, float(image), 0, 1, names


def _edge_rows(made: MadeContent) -> Iterator[tuple[str, str]]:
    for digest, number in made.in_order():
        if part := number % PER_IMAGE:
            yield digest, made.text(number - part)


def _link_rows(made: MadeContent) -> Iterator[tuple[str, str, int]]:
    for repo, digests in _linked(made):
        for digest in sorted(digests):
            yield repo, digest, SIZE


def _linked(made: MadeContent) -> Iterator[tuple[str, list[str]]]:
    """The repositories with what is linked to them."""
    for repo, images in groupby(range(made.images), made.repo):
        yield str(repo), [made.text(image * PER_IMAGE + part) for image in images for part in range(PER_IMAGE)]


# -------------------------------------------------------------------------------------------------------------- Redis


def write_redis(client: Redis, store_id: str, made: MadeContent) -> None:
    """Blocking: under the keys of a `RedisIndex` that is empty."""
    keys = Keys(store_id)
    name = dict(zip(Keys.NAMES, keys.fixed, strict=True))
    for images in batches(range(made.images), _AT_ONCE):
        pipe = client.pipeline(transaction=False)
        manifests = {made.text(image * PER_IMAGE): image for image in images}
        below = {
            digest: [made.text(image * PER_IMAGE + part) for part in range(1, PER_IMAGE)]
            for digest, image in manifests.items()
        }
        parts = [each for children in below.values() for each in children]
        _set(pipe, name["sizes"], dict.fromkeys([*manifests, *parts], SIZE))
        _set(pipe, name["names"], {digest: " ".join(children) for digest, children in below.items()})
        _set(pipe, name["parents"], dict.fromkeys(parts, 1))
        pipe.zadd(name["root"], {digest: float(image) for digest, image in manifests.items()})
        pipe.zadd(name["named"], dict.fromkeys(parts, _USED_AT))
        pipe.execute()
    for repo, digests in _linked(made):
        pipe = client.pipeline(transaction=False)
        pipe.sadd(name["repos"], repo)
        _set(pipe, keys.links(repo), dict.fromkeys(digests, SIZE))
        pipe.execute()
    client.set(name["bytes"], made.blobs * SIZE)


def _set(pipe: Any, key: str, values: Mapping[str, int | str]) -> None:
    pipe.hset(key, mapping=dict(values))
