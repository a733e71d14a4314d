"""A store on disk with images put into it directly, as pulls would leave them, and a look at the whole of its tree.

stocked = Stocked(tmp_path / "store")
root = stocked.image("library/app", [b"one layer", b"another"])
stocked.tag("library/app", "v1", root)
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_INDEX, OCI_MANIFEST, Descriptor
from mirror.oci.reference import Repo
from mirror.policy.records import ManifestRecord, TagRecord
from mirror.store.local.blobs import LocalStore
from mirror.store.local.layout import Layout
from mirror.store.local.local_records import local_catalog

_REGISTRY: Final = "docker.io"


def write_settings(root: Path, *, capacity: str = "10GB", more: str = "") -> Path:
    """Write a configuration of one unreachable registry, with its store at `root`."""
    file = root.with_suffix(".toml")
    file.write_text(
        f'[store]\nroot = {json.dumps(str(root))}\ncapacity = "{capacity}"\n'
        f'[[upstream]]\nname = "{_REGISTRY}"\nurl = "http://127.0.0.1:9"\n{more}\n'
    )
    return file


def tree(root: Path) -> dict[str, tuple[int, str]]:
    """Every path below a folder with its mode and a digest of its content: what «unchanged» means.

    The index is left out, opening it is enough to change its bytes; so are locks, which are empty files.
    """
    found = {}
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(folder, name)
            if name.startswith("index.sqlite") or path.parent.name == "locks":
                continue
            content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
            found[str(path.relative_to(root))] = (path.lstat().st_mode, content)
    return found


class Stocked:
    """One store; everything is filed under docker.io."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.layout = Layout(root)
        self.store = LocalStore(self.layout)
        self.catalog = local_catalog(self.layout)

    def blob(self, content: bytes, *, here: bool = True) -> dict[str, Any]:
        """Its descriptor."""
        digest = Digest.of(content)
        if here:
            self.store.put(digest, content)
        return {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": str(digest), "size": len(content)}

    def manifest(self, name: str, body: Mapping[str, Any], kind: str, *, here: bool = True) -> Descriptor:
        """Any manifest or index of a repository."""
        content = json.dumps({"schemaVersion": 2, "mediaType": kind, **body}).encode()
        digest = Digest.of(content)
        if here:
            self.store.put(digest, content)
            self.catalog.put_manifest(Repo(_REGISTRY, name), ManifestRecord(digest, kind, len(content), 0.0))
        return Descriptor(kind, digest, len(content))

    def image(
        self,
        name: str,
        layers: Sequence[bytes],
        *,
        kind: str = OCI_MANIFEST,
        subject: Descriptor | None = None,
        missing: Sequence[bytes] = (),
        here: bool = True,
    ) -> Descriptor:
        """An image; layers in `missing` are named and not here."""
        config = {
            **self.blob(f"config of {name} {[str(Digest.of(layer)) for layer in layers]}".encode(), here=here),
            "mediaType": "application/json",
        }
        listed = [self.blob(layer, here=here and layer not in missing) for layer in layers]
        body: dict[str, Any] = {"config": config, "layers": listed}
        if subject:
            body["subject"] = subject.to_json()
        return self.manifest(name, body, kind, here=here)

    def index(
        self,
        name: str,
        children: Mapping[str, Descriptor],
        *,
        kind: str = OCI_INDEX,
        attested: Mapping[Digest, Descriptor] | None = None,
    ) -> Descriptor:
        """An index by architecture, with attestations by what they are about, as build tools write them."""
        listed: list[dict[str, Any]] = [
            {**child.to_json(), "platform": {"os": "linux", "architecture": architecture}}
            for architecture, child in children.items()
        ]
        listed += [
            {
                **child.to_json(),
                "platform": {"os": "unknown", "architecture": "unknown"},
                "annotations": {"vnd.docker.reference.digest": str(about)},
            }
            for about, child in (attested or {}).items()
        ]
        return self.manifest(name, {"manifests": listed}, kind)

    def tag(self, name: str, tag: str, root: Descriptor) -> str:
        """The full name."""
        self.catalog.put_tag(
            Repo(_REGISTRY, name), TagRecord(tag, root.digest, root.media_type, root.size, 1_700_000_000.0)
        )
        return f"{_REGISTRY}/{name}:{tag}"

    def tagged(self, name: str, tag: str = "v1") -> Digest | None:
        """The digest that a tag points to."""
        record = self.catalog.get_tag(Repo(_REGISTRY, name), tag)
        return record.digest if record else None

    def has(self, content: bytes) -> bool:
        """Whether these bytes are here, under their digest."""
        path = Path(self.layout.blob(Digest.of(content)))
        return path.exists() and path.read_bytes() == content

    def plant(self, digest: Digest, content: bytes) -> None:
        """Wrong bytes under the name of this digest."""
        place = Path(self.layout.blob(digest))
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        place.write_bytes(content)
