"""What is pulled: images of random layers, the same for the same seed, pushed to a registry, and kept to compare."""

from __future__ import annotations

import hashlib
import json
import mmap
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support.images import Blob, Pusher, sha256

MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
#: Of layers that are shared with another repository, as base images are.
_SHARED: Final = 0.2


@dataclass(frozen=True, slots=True)
class Size:
    """How many images, of one to `layers` layers, each of `smallest` to `largest` bytes (even on a log scale)."""

    images: int
    layers: int
    smallest: int
    largest: int


@dataclass(frozen=True, slots=True)
class Image:
    """One image under one tag; `blobs` are config and layers, bytes by digest."""

    repository: str
    tag: str
    digest: str
    blobs: Mapping[str, int]

    @property
    def by_tag(self) -> str:
        """The request path of the manifest by its tag."""
        return f"/v2/{self.repository}/manifests/{self.tag}"

    @property
    def by_digest(self) -> str:
        """The request path of the manifest by its digest."""
        return f"/v2/{self.repository}/manifests/{self.digest}"

    @property
    def tags(self) -> str:
        """The request path of the tag list."""
        return f"/v2/{self.repository}/tags/list"

    def blob(self, digest: str) -> str:
        """The request path of a blob."""
        return f"/v2/{self.repository}/blobs/{digest}"


class Library:
    """All images, most popular first, and the bytes of everything by digest."""

    def __init__(self, images: list[Image], contents: Mapping[str, bytes | mmap.mmap]) -> None:
        self.images = images
        self.contents = contents

    @property
    def size(self) -> int:
        """Bytes of all blobs and manifests, each counted once."""
        return sum(map(len, self.contents.values()))

    def choose(self, draw: random.Random) -> Image:
        """An image; a few are popular, most are rare."""
        return self.images[int(len(self.images) * draw.random() ** 2)]


def publish(url: str, folder: Path, seed: int, size: Size) -> Library:
    """Push all images of a seed to the registry at `url`; the bytes stay in files below `folder`."""
    folder.mkdir()
    draw = random.Random(f"library {seed}")
    contents: dict[str, bytes | mmap.mmap] = {}
    images: list[Image] = []
    base: list[bytes] = []
    for number in range(size.images):
        with Pusher(url, f"soak/app-{number:03}") as pusher:
            layers: list[Blob] = []
            for _ in range(draw.randint(1, size.layers)):
                if base and draw.random() < _SHARED:
                    content = draw.choice(base)
                else:
                    content = draw.randbytes(int(size.smallest * (size.largest / size.smallest) ** draw.random()))
                    # few and small: they are held in memory
                    if len(base) < 8 and len(content) < 1 << 20:
                        base.append(content)
                layers.append(pusher.blob(_LAYER, content))
                contents.setdefault(layers[-1].digest, _kept(folder, content))
            images.append(_image(pusher, f"v1.{number}", layers, contents))
    return Library(images, contents)


def _image(pusher: Pusher, tag: str, layers: list[Blob], contents: dict[str, bytes | mmap.mmap]) -> Image:
    described = json.dumps({"architecture": "amd64", "os": "linux", "name": pusher.repository}).encode()
    config = pusher.blob(_CONFIG, described)
    contents[config.digest] = described
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config.to_json(),
            "layers": [layer.to_json() for layer in layers],
        }
    ).encode()
    pusher.manifest(tag, MANIFEST, manifest)
    contents[sha256(manifest)] = manifest
    return Image(pusher.repository, tag, sha256(manifest), {blob.digest: blob.size for blob in (config, *layers)})


def _kept(folder: Path, content: bytes) -> mmap.mmap:
    place = folder / hashlib.sha256(content).hexdigest()
    place.write_bytes(content)
    with place.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
