"""What an image consists of and how much of it is here, on the store and catalog in memory."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from mirror.graph.closure import Closure, Role, read_closure
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_INDEX, OCI_MANIFEST, Descriptor
from mirror.oci.reference import Repo
from mirror.policy.records import ManifestRecord
from mirror.values.platforms import parse_platforms
from tests.support.memory_store import MemoryCatalog, MemoryStore

_REPO = Repo("docker.io", "library/app")


class _Site:
    def __init__(self) -> None:
        self.store = MemoryStore()
        self.catalog = MemoryCatalog()

    def blob(self, content: bytes, *, here: bool = True) -> dict[str, object]:
        digest = Digest.of(content)
        if here:
            self.store.put(digest, content)
        return {"mediaType": "application/octet-stream", "digest": str(digest), "size": len(content)}

    def manifest(self, body: dict[str, object], kind: str, *, here: bool = True, repo: Repo = _REPO) -> Descriptor:
        content = json.dumps({"schemaVersion": 2, "mediaType": kind, **body}).encode()
        digest = Digest.of(content)
        if here:
            self.store.put(digest, content)
            self.catalog.put_manifest(repo, ManifestRecord(digest, kind, len(content), 0.0))
        return Descriptor(kind, digest, len(content))

    def image(self, name: str, layers: Sequence[dict[str, object]], *, here: bool = True) -> Descriptor:
        return self.manifest({"config": self.blob(name.encode(), here=here), "layers": layers}, OCI_MANIFEST, here=here)

    def index(self, children: dict[str, Descriptor]) -> Descriptor:
        listed = [
            {**child.to_json(), "platform": {"os": "linux", "architecture": architecture}}
            for architecture, child in children.items()
        ]
        return self.manifest({"manifests": listed}, OCI_INDEX)

    def read(self, root: Descriptor, platforms: str = "", repo: Repo = _REPO) -> Closure:
        return read_closure(self.store, self.catalog, repo, root, parse_platforms([platforms]))


@pytest.fixture
def site() -> _Site:
    """Empty."""
    return _Site()


def test_a_whole_image(site: _Site) -> None:
    """Manifest, config and layers, each once, parents first."""
    layer = site.blob(b"layer")
    root = site.image("config", [layer, layer, site.blob(b"another")])
    closure = site.read(root)
    assert closure.complete
    assert [node.role for node in closure.nodes] == [Role.MANIFEST, Role.CONFIG, Role.LAYER, Role.LAYER]
    assert closure.size == closure.present_size == root.size + len(b"config") + len(b"layer") + len(b"another")
    assert {node.parent for node in closure.nodes} == {None, root.digest}


def test_a_missing_layer(site: _Site) -> None:
    """It is named, and the image is not complete."""
    closure = site.read(site.image("config", [site.blob(b"here"), site.blob(b"gone", here=False)]))
    assert not closure.complete
    assert [node.digest for node in closure.missing] == [Digest.of(b"gone")]
    assert closure.present_size == closure.size - len(b"gone")


def test_a_sparse_index(site: _Site) -> None:
    """Platforms that nobody pulled do not make it incomplete; those that were begun do."""
    here = site.image("amd64", [site.blob(b"layer")])
    never = site.image("arm64", [], here=False)
    root = site.index({"amd64": here, "arm64": never})
    closure = site.read(root)
    assert closure.complete
    assert [node.digest for node in closure.unpulled] == [never.digest]
    assert [node.digest for node in closure.manifests] == [here.digest, never.digest]
    assert [node.role for node in closure.below(here.digest)] == [Role.CONFIG, Role.LAYER]
    begun = site.image("s390x", [site.blob(b"gone", here=False)])
    assert not site.read(site.index({"amd64": here, "s390x": begun})).complete
    assert site.read(site.index({"amd64": here, "s390x": begun}), "linux/amd64").complete
    assert not site.read(site.index({"arm64": never})).complete


def test_nothing_at_all(site: _Site) -> None:
    """A root that is not here is what is missing."""
    closure = site.read(Descriptor(OCI_MANIFEST, Digest.of(b"?"), 1))
    assert not closure.complete
    assert [node.digest for node in closure.missing] == [Digest.of(b"?")]


def test_a_manifest_of_another_repository(site: _Site) -> None:
    """Its bytes are here, the right to them is not."""
    root = site.image("config", [])
    assert site.read(root).complete
    assert not site.read(root, repo=Repo("docker.io", "other/app")).complete


def test_foreign_layers_do_not_count(site: _Site) -> None:
    """Registries do not have their bytes."""
    foreign = {**site.blob(b"windows", here=False), "urls": ["https://example.com/layer"]}
    assert site.read(site.image("config", [foreign])).complete


def test_a_blob_of_another_size_is_not_here(site: _Site) -> None:
    """What a manifest says is believed, and something else lies under the name."""
    layer = {**site.blob(b"layer"), "size": 99}
    assert not site.read(site.image("config", [layer])).complete


def test_indexes_in_indexes(site: _Site) -> None:
    """Nested more deeply than functions may call themselves: all of it belongs to the image, and is here."""
    image = named = site.image("config", [site.blob(b"layer")])
    for _ in range(2000):
        named = site.index({"amd64": named})
    closure = site.read(named)
    assert closure.complete
    assert len(closure.nodes) == 2003
    assert [node.digest for node in closure.nodes[-3:]] == [image.digest, Digest.of(b"config"), Digest.of(b"layer")]
