"""A store that is written to as another process would: `import`, `pin` and the like write files, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_INDEX, OCI_MANIFEST, Descriptor
from mirror.oci.reference import Repo
from mirror.policy.records import ManifestRecord, TagRecord
from mirror.ports import BlobStore, Catalog
from mirror.store.local.blobs import LocalStore
from mirror.store.local.layout import Layout
from mirror.store.local.local_records import local_catalog

APP = Repo("docker.io", "library/app")
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"


class Here:
    """Puts content in its place, bytes first, then what names them."""

    def __init__(self, store: BlobStore, catalog: Catalog) -> None:
        self.store = store
        self.catalog = catalog

    @classmethod
    def at(cls, root: Path) -> Here:
        """On disk."""
        layout = Layout(root)
        return cls(LocalStore(layout), local_catalog(layout))

    def blob(self, content: bytes, media_type: str = LAYER, *, here: bool = True) -> dict[str, Any]:
        """Its descriptor; not `here`: only named."""
        digest = Digest.of(content)
        if here:
            self.store.put(digest, content)
        return {"mediaType": media_type, "digest": str(digest), "size": len(content)}

    def manifest(
        self, body: Mapping[str, Any], kind: str = OCI_MANIFEST, *, repo: Repo = APP, tag: str | None = None
    ) -> Descriptor:
        """Exactly this body, the tag pointing to it."""
        content = json.dumps({"schemaVersion": 2, "mediaType": kind, **body}).encode()
        return self.raw(content, kind, repo=repo, tag=tag)

    def raw(self, content: bytes, kind: str, *, repo: Repo = APP, tag: str | None = None) -> Descriptor:
        """Exactly these bytes, the tag pointing to them."""
        digest = Digest.of(content)
        self.store.put(digest, content)
        self.catalog.put_manifest(repo, ManifestRecord(digest, kind, len(content), 1000.0))
        if tag:
            self.catalog.put_tag(repo, TagRecord(tag, digest, kind, len(content), 2000.0))
        return Descriptor(kind, digest, len(content))

    def image(
        self,
        layers: Sequence[bytes | dict[str, Any]],
        *,
        config: Mapping[str, Any] | None = None,
        repo: Repo = APP,
        tag: str | None = None,
        **more: Any,
    ) -> Descriptor:
        """An image of these layers; a layer given as a descriptor is only named. `more` are fields of its manifest."""
        listed = [self.blob(layer) if isinstance(layer, bytes) else layer for layer in layers]
        described = self.blob(json.dumps(config or {"os": "linux", "architecture": "amd64"}).encode(), CONFIG)
        return self.manifest({"config": described, "layers": listed, **more}, repo=repo, tag=tag)

    def index(self, children: Mapping[str, Descriptor], *, repo: Repo = APP, tag: str | None = None) -> Descriptor:
        """An index of children by platform (`linux/arm/v7`)."""
        listed = []
        for platform, child in children.items():
            parts = dict(zip(("os", "architecture", "variant"), platform.split("/"), strict=False))
            listed.append({**child.to_json(), "platform": parts})
        return self.manifest({"manifests": listed}, OCI_INDEX, repo=repo, tag=tag)
