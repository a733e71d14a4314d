"""Image layouts made by hand: tars with valid and invalid content."""

from __future__ import annotations

import copy
import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_MANIFEST

#: In order, names may come twice.
Members: TypeAlias = list[tuple[tarfile.TarInfo, bytes]]


def read_members(path: Path) -> Members:
    """Everything in a tar."""
    with tarfile.open(path) as tar:
        return [(one, file.read() if (file := tar.extractfile(one)) else b"") for one in tar.getmembers()]


def write_members(path: Path, members: Iterable[tuple[tarfile.TarInfo, bytes]]) -> Path:
    """The tar, with sizes as the contents have them."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for one, content in members:
            one = copy.copy(one)
            one.size = len(content)
            tar.addfile(one, io.BytesIO(content))
    path.write_bytes(made.getvalue())
    return path


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    """A member of any kind."""
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, link
    return made


def blob_path(content: bytes) -> str:
    """Where a layout has it."""
    return f"blobs/sha256/{Digest.of(content).hex}"


def foreign_layout(
    images: Mapping[str, bytes], blobs: Iterable[bytes] = (), *, media_type: str = OCI_MANIFEST, **index: Any
) -> Members:
    """As another tool would write it: manifests by `ref.name`, and blobs; `index` are further fields of index.json."""
    listed = [
        {
            "mediaType": media_type,
            "digest": str(Digest.of(manifest)),
            "size": len(manifest),
            "annotations": {"org.opencontainers.image.ref.name": name} if name else {},
        }
        for name, manifest in images.items()
    ]
    files = {
        "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
        "index.json": json.dumps({"schemaVersion": 2, "manifests": listed, **index}).encode(),
        **{blob_path(content): content for content in (*images.values(), *blobs)},
    }
    return [(entry(name), content) for name, content in files.items()]
