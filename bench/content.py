"""What is pulled: images of one layer, laid out as the distribution API names them, so that files are a registry.

v2/<repository>/manifests/latest           the manifest, exactly 4 KiB
v2/<repository>/manifests/sha256:<hex>     the same
v2/<repository>/blobs/sha256:<hex>         the layer; the config, 1 KiB
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MANIFEST_SIZE: Final = 4096
MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
_CHUNK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Image:
    """An image of one layer; `size` is the layer's, in bytes."""

    repository: str
    manifest: str
    config: str
    layer: str
    size: int

    def blob_path(self, digest: str) -> str:
        """The request path of a blob."""
        return f"/v2/{self.repository}/blobs/{digest}"

    @property
    def layer_path(self) -> str:
        """The request path of the layer."""
        return self.blob_path(self.layer)

    def manifest_path(self, reference: str) -> str:
        """The request path of the manifest."""
        return f"/v2/{self.repository}/manifests/{reference}"


def make_image(root: Path, repository: str, size: int) -> Image:
    """Write an image with a layer of `size` random bytes below `root`."""
    blobs = root / "v2" / repository / "blobs"
    manifests = root / "v2" / repository / "manifests"
    blobs.mkdir(parents=True)
    manifests.mkdir()
    layer = _write_layer(blobs, size)
    config = _write(
        blobs, json.dumps({"architecture": "amd64", "os": "linux", "name": repository}).encode().ljust(1024)
    )
    content = _manifest(config, [layer], size)
    digest = _write(manifests, content)
    (manifests / "latest").write_bytes(content)
    return Image(repository, digest, config, layer, size)


def make_layers(root: Path, repository: str, size: int, count: int) -> list[str]:
    """Write so many layers of `size` random bytes each, and an image of them under the tag `latest`; returns the
    request paths of the layers.
    """
    blobs, manifests = (root / "v2" / repository / kind for kind in ("blobs", "manifests"))
    blobs.mkdir(parents=True)
    manifests.mkdir()
    digests = [_write_layer(blobs, size) for _ in range(count)]
    config = _write(blobs, json.dumps({"architecture": "amd64", "os": "linux"}).encode().ljust(1024))
    (manifests / "latest").write_bytes(_manifest(config, digests, size))
    return [f"/v2/{repository}/blobs/{digest}" for digest in digests]


def _write(folder: Path, content: bytes) -> str:
    digest = "sha256:" + hashlib.sha256(content).hexdigest()
    (folder / digest).write_bytes(content)
    return digest


def _write_layer(folder: Path, size: int) -> str:
    noise = os.urandom(_CHUNK)
    hasher = hashlib.sha256()
    growing = folder / "growing"
    with growing.open("wb") as file:
        for start in range(0, size, _CHUNK):
            # numbered, so that bytes from a wrong offset do not go unseen
            chunk = (start.to_bytes(8, "big") + noise[8:])[: size - start]
            hasher.update(chunk)
            file.write(chunk)
        file.flush()
        # pages waiting to be written would disturb what is measured later
        os.fsync(file.fileno())
    digest = "sha256:" + hasher.hexdigest()
    growing.rename(folder / digest)
    return digest


def _manifest(config: str, layers: Sequence[str], size: int) -> bytes:
    kind = "application/vnd.oci.image.layer.v1.tar"
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": 1024},
        "layers": [{"mediaType": kind, "digest": layer, "size": size} for layer in layers],
        "annotations": {"filler": ""},
    }
    document["annotations"] = {"filler": "x" * (MANIFEST_SIZE - len(json.dumps(document)))}
    return json.dumps(document).encode()
