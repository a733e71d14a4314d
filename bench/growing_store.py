"""Writes a store of many small images, cached and hosted, as mirrors leave it: file by file, without a mirror, one
process for each core.

An image has a config and three layers of its own, and names four more that the images of its repository share. Every
fifth image is an index of two such images. A repository has a hundred images, each with a tag. Every fourth repository
is hosted: it has a link to each of its blobs as well. Sizes are a few bytes, because nothing that grows with a store
depends on them; each file has its own content and its own inode.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

from bench.content import MANIFEST_TYPE
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.hosted.push_checks import linked
from mirror.policy.records import ManifestRecord, TagRecord
from mirror.store.local.layout import Layout
from mirror.store.records.record_keys import file_name

CACHED: Final = "docker.io"
HOSTED: Final = "corp"

INDEX_TYPE: Final = "application/vnd.oci.image.index.v1+json"
_CONFIG_TYPE: Final = "application/vnd.oci.image.config.v1+json"
_LAYER_TYPE: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
_PER_REPOSITORY: Final = 100
_OWN_LAYERS: Final = 3
_SHARED_LAYERS: Final = 4
_INDEX_EVERY: Final = 5
_HOSTED_EVERY: Final = 4
#: Repositories that a process writes before it takes the next ones.
_TAKEN: Final = 8
#: Clients ask for one of so many blobs of cached images.
_WANTED_EVERY: Final = 24
#: Seconds since everything was fetched; images were used one after the other since then.
_AGE: Final = 10 * 86400.0
#: An index names two images. An image has a config, its own layers and a manifest.
_IMAGES_OF_REPOSITORY: Final = _PER_REPOSITORY + _PER_REPOSITORY // _INDEX_EVERY
_BLOBS_OF_REPOSITORY: Final = (
    _SHARED_LAYERS + _IMAGES_OF_REPOSITORY * (_OWN_LAYERS + 2) + _PER_REPOSITORY // _INDEX_EVERY
)
#: Bytes on the disk of the smallest file.
_BLOCK: Final = 4096


@dataclass(slots=True)
class GrownStore:
    """What a store has: numbers of `blobs`, `images` (tags), `manifests`, `repositories` and `files`; all tags, and
    some digests with a repository that may serve them.
    """

    blobs: int = 0
    images: int = 0
    manifests: int = 0
    hosted_images: int = 0
    repositories: int = 0
    files: int = 0
    tags: list[tuple[Repo, str]] = field(default_factory=list, repr=False)
    #: Blobs of cached images, all over the store.
    wanted: list[tuple[Repo, Digest]] = field(default_factory=list, repr=False)

    def facts(self) -> Mapping[str, int]:
        """The numbers, by name."""
        return {name: getattr(self, name) for name in _NUMBERS}

    def add(self, other: GrownStore) -> None:
        """Count what another writer has written as well."""
        for name in _NUMBERS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.tags += other.tags
        self.wanted += other.wanted

    def to_json(self) -> str:
        """For `from_json`."""
        tags = [(str(repo), tag) for repo, tag in self.tags]
        wanted = [(str(repo), str(digest)) for repo, digest in self.wanted]
        return json.dumps({**self.facts(), "tags": tags, "wanted": wanted})

    @classmethod
    def from_json(cls, text: str) -> GrownStore:
        """The inverse of `to_json`."""
        content = json.loads(text)
        content["tags"] = [(_repo(name), tag) for name, tag in content["tags"]]
        content["wanted"] = [(_repo(name), Digest.parse(digest)) for name, digest in content["wanted"]]
        return cls(**content)


_NUMBERS: Final = ("blobs", "images", "hosted_images", "manifests", "repositories", "files")


def _repo(name: str) -> Repo:
    registry, _, rest = name.partition("/")
    return Repo(registry, rest)


def room_needed(blobs: int) -> tuple[int, int]:
    """The bytes and the files that a store of so many blobs takes, roughly."""
    files = blobs * 2
    return files * _BLOCK + blobs * 2048, files


def write_store(root: Path, blobs: int) -> GrownStore:
    """Write a store of at least so many blobs, in whole repositories, below a root that a mirror has opened before."""
    repositories = -(-blobs // _BLOBS_OF_REPOSITORY)
    parts = [range(first, min(first + _TAKEN, repositories)) for first in range(0, repositories, _TAKEN)]
    made, began = GrownStore(), time.time() - _AGE
    if len(parts) == 1:
        made = _write_repositories(root, began, parts[0])
    else:
        with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as processes:
            for part in processes.map(_write_repositories, *zip(*((root, began, each) for each in parts), strict=True)):
                made.add(part)
    Layout(root).repositories_added.write_bytes(b"." * repositories)
    os.sync()
    return made


def _write_repositories(root: Path, began: float, numbers: range) -> GrownStore:
    writer = _Writer(Layout(root), began)
    for number in numbers:
        hosted = number % _HOSTED_EVERY == _HOSTED_EVERY - 1
        repo = Repo(HOSTED if hosted else CACHED, f"team-{number % 50}/app-{number}")
        writer.repository(repo, hosted=hosted)
    return writer.made


class _Writer:
    def __init__(self, layout: Layout, began: float) -> None:
        """Everything was fetched at `began`, in epoch seconds."""
        self._layout = layout
        self._began = began
        self.made = GrownStore()
        self._cached = 0

    def repository(self, repo: Repo, *, hosted: bool) -> None:
        """Write one repository of a hundred images."""
        made = self.made
        made.repositories += 1
        shared = [self._blob(repo, f"base layer {number}", hosted) for number in range(_SHARED_LAYERS)]
        for number in range(_PER_REPOSITORY):
            used_at = self._began + _AGE * number / _PER_REPOSITORY * 0.9
            if number % _INDEX_EVERY:
                root = self._image(repo, f"{number}", shared, hosted, used_at)
                kind = MANIFEST_TYPE
            else:
                parts = [
                    (self._image(repo, f"{number} {name}", shared, hosted, used_at), name)
                    for name in ("amd64", "arm64")
                ]
                root, kind = self._manifest(repo, _index(parts), INDEX_TYPE, hosted, used_at), INDEX_TYPE
            tag = f"v1.{number}"
            record = TagRecord(tag, root[0], kind, root[1], used_at)
            self._write(f"{self._layout.tags(repo)}/{tag}", record.to_json())
            made.images += 1
            made.hosted_images += hosted
            made.tags.append((repo, tag))

    def _image(
        self, repo: Repo, name: str, shared: Sequence[tuple[Digest, int]], hosted: bool, used_at: float
    ) -> tuple[Digest, int]:
        config = self._blob(repo, f"config {name}", hosted, {"architecture": "amd64", "os": "linux"})
        own = [self._blob(repo, f"layer {name} {number}", hosted) for number in range(_OWN_LAYERS)]
        layers = [_descriptor(_LAYER_TYPE, *each) for each in (*shared, *own)]
        body = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": _descriptor(_CONFIG_TYPE, *config),
            "layers": layers,
        }
        return self._manifest(repo, body, MANIFEST_TYPE, hosted, used_at)

    def _manifest(
        self, repo: Repo, body: Mapping[str, Any], kind: str, hosted: bool, used_at: float
    ) -> tuple[Digest, int]:
        content = json.dumps(body).encode()
        digest = Digest.of(content)
        self._file(digest, content, hosted)
        record = ManifestRecord(digest, kind, len(content), used_at)
        self._write(f"{self._layout.manifests(repo)}/{file_name(digest)}", record.to_json())
        self.made.manifests += 1
        return digest, len(content)

    def _blob(self, repo: Repo, name: str, hosted: bool, more: Mapping[str, str] | None = None) -> tuple[Digest, int]:
        content = json.dumps({"of": f"{repo} {name}", **(more or {})}).encode()
        digest = Digest.of(content)
        self._file(digest, content, hosted)
        if hosted:
            link = linked(digest, len(content), self._began).to_json()
            self._write(f"{self._layout.links(repo)}/{file_name(digest)}", link)
        else:
            self._cached += 1
            if self._cached % _WANTED_EVERY == 0:
                self.made.wanted.append((repo, digest))
        return digest, len(content)

    def _file(self, digest: Digest, content: bytes, hosted: bool) -> None:
        self._write(self._layout.hosted_blob(digest) if hosted else self._layout.blob(digest), content)
        self.made.blobs += 1

    def _write(self, path: str, content: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            descriptor = os.open(path, flags, 0o600)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            descriptor = os.open(path, flags, 0o600)
        os.write(descriptor, content)
        os.close(descriptor)
        self.made.files += 1


def _index(parts: Sequence[tuple[tuple[Digest, int], str]]) -> Mapping[str, Any]:
    manifests = [
        {**_descriptor(MANIFEST_TYPE, *each), "platform": {"os": "linux", "architecture": name}} for each, name in parts
    ]
    return {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests}


def _descriptor(kind: str, digest: Digest, size: int) -> dict[str, Any]:
    return {"mediaType": kind, "digest": str(digest), "size": size}


def digests(count: int) -> Iterator[Digest]:
    """So many digests of nothing, in random order."""
    return (Digest.of(str(number).encode()) for number in range(count))
