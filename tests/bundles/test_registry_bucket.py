"""The data of a docker-registry, read from a directory and from a bucket: both say the same of the same tree."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mirror.bundles.registry_bucket import RegistryBucket
from mirror.bundles.registry_data import RegistryData, RegistryFolder, RegistryRepository
from mirror.config import load, routing_table
from mirror.errors import BucketUnavailable, BundleError
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_INDEX, OCI_MANIFEST
from tests.support.command import Done, mirror
from tests.support.memory_bucket import MemoryBucket
from tests.support.mirror_process import write_config

_ROOT = "docker/registry/v2"


def _described(content: bytes, media_type: str) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": str(Digest.of(content)), "size": len(content)}


@dataclass
class Tree:
    """The files of a registry, as its drivers write them."""

    files: dict[str, bytes] = field(default_factory=dict)

    def blob(self, repository: str, content: bytes) -> Digest:
        """Push a blob."""
        digest = self._stored(content)
        self._link(f"{repository}/_layers/sha256/{digest.hex}", digest)
        return digest

    def image(self, repository: str, layer: bytes, *tags: str) -> Digest:
        """Push an image of one layer."""
        self.blob(repository, layer)
        self.blob(repository, b"{}")
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": _described(b"{}", "application/vnd.oci.image.config.v1+json"),
            "layers": [_described(layer, "application/vnd.oci.image.layer.v1.tar")],
        }
        return self.manifest(repository, json.dumps(manifest).encode(), *tags)

    def index(self, repository: str, children: list[Digest], *tags: str) -> Digest:
        """Push an index, whose children need not be there."""
        listed = [{"mediaType": OCI_MANIFEST, "digest": str(child), "size": 400} for child in children]
        return self.manifest(
            repository,
            json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed}).encode(),
            *tags,
        )

    def manifest(self, repository: str, content: bytes, *tags: str) -> Digest:
        """Push a manifest."""
        digest = self._stored(content)
        self._link(f"{repository}/_manifests/revisions/sha256/{digest.hex}", digest)
        for tag in tags:
            self._link(f"{repository}/_manifests/tags/{tag}/current", digest)
            self._link(f"{repository}/_manifests/tags/{tag}/index/sha256/{digest.hex}", digest)
        return digest

    def data(self, digest: Digest) -> str:
        """Where the bytes are."""
        return f"{_ROOT}/blobs/sha256/{digest.hex[:2]}/{digest.hex}/data"

    def folder(self, root: Path) -> RegistryFolder:
        """The tree as a directory."""
        for name, content in self.files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return RegistryFolder(root)

    def bucket(self) -> MemoryBucket:
        """The tree as objects."""
        bucket = MemoryBucket()
        for name, content in self.files.items():
            bucket.write(name, content)
        bucket.calls.clear()
        return bucket

    def _stored(self, content: bytes) -> Digest:
        digest = Digest.of(content)
        self.files[self.data(digest)] = content
        return digest

    def _link(self, folder: str, digest: Digest) -> None:
        self.files[f"{_ROOT}/repositories/{folder}/link"] = str(digest).encode()


Opens = Callable[[Tree], RegistryData]


@pytest.fixture(params=["folder", "bucket"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Opens:
    """Opens the tree as the one or the other."""
    if request.param == "folder":
        return lambda tree: tree.folder(tmp_path)
    return lambda tree: RegistryBucket(tree.bucket(), "s3://old")


def images(data: RegistryData) -> dict[str, Any]:
    """Each repository's images by name, with the digests that they point to, and its lost tags."""
    found: dict[str, Any] = {}
    for repository in data.repositories():
        listed, lost = repository.images("docker.io", routing_table(load(None)))
        found[repository.name] = {image.name: str(image.root.digest) for image in listed}, lost
    return found


def only(data: RegistryData) -> RegistryRepository:
    """The only repository."""
    [repository] = data.repositories()
    return repository


def test_every_image_is_found(opened: Opens) -> None:
    tree = Tree()
    app = tree.image("team/app", b"layer", "v1", "latest")
    other = tree.image("team/app", b"another layer")
    nested = tree.image("team/app/nested", b"layer", "v1")
    both = tree.index("team", [tree.image("team", b"arm"), Digest.of(b"never pulled")], "all")
    tree.files[f"{_ROOT}/repositories/team/uploading/_uploads/1/startedat"] = b"now"
    assert images(opened(tree)) == {
        "team": ({"docker.io/library/team:all": str(both)}, []),
        "team/app": (
            {
                "docker.io/team/app:latest": str(app),
                "docker.io/team/app:v1": str(app),
                f"docker.io/team/app@{other}": str(other),
            },
            [],
        ),
        "team/app/nested": ({"docker.io/team/app/nested:v1": str(nested)}, []),
    }


def test_what_is_damaged_is_lost_and_the_rest_found(opened: Opens) -> None:
    tree = Tree()
    good, gone, wrong = (tree.image("team/app", name.encode(), name) for name in ("good", "gone", "wrong"))
    del tree.files[tree.data(gone)]
    tree.files[tree.data(wrong)] = b"other bytes"
    tree.files[f"{_ROOT}/repositories/team/app/_manifests/tags/odd/current/link"] = b"no digest"
    tree.files[f"{_ROOT}/repositories/team/app/_manifests/tags/long/current/link"] = b"sha256:" * 1000
    found, lost = images(opened(tree))["team/app"]
    assert found == {"docker.io/team/app:good": str(good)}
    assert lost == ["gone", "wrong"]


def test_bytes_of_other_repositories_are_not_vouched_for(opened: Opens) -> None:
    """Manifests without a link are not given at all."""
    tree = Tree()
    mine = tree.image("team/app", b"mine", "v1")
    theirs, their_blob = tree.image("secret/app", b"theirs", "v1"), Digest.of(b"theirs")
    repository = next(one for one in opened(tree).repositories() if one.name == "team/app")
    assert repository.manifest(mine) is not None
    assert repository.manifest(theirs) is None
    assert repository.vouches(Digest.of(b"mine"))
    assert not repository.vouches(their_blob)
    assert repository.size(their_blob) == 6
    assert repository.size(Digest.of(b"nowhere")) is None


def test_a_blob_is_read_from_any_byte(opened: Opens) -> None:
    tree = Tree()
    tree.image("team/app", b"0123456789", "v1")
    read: list[int] = []
    buffer = bytearray(20)
    with only(opened(tree)).body(Digest.of(b"0123456789"), 4, read.append) as body:
        assert (body.start, body.size) == (4, 10)
        assert bytes(buffer[: body.readinto(memoryview(buffer))]) == b"456789"
        assert body.readinto(memoryview(buffer)) == 0
    assert sum(read) == 6


@pytest.mark.parametrize("place", ["docker/registry/v2/", ""])
def test_the_prefix_is_the_root_or_the_folder_below_it(place: str) -> None:
    tree = Tree()
    tree.image("team/app", b"layer", "v1")
    bucket = MemoryBucket()
    for name, content in tree.files.items():
        bucket.write(place + name.removeprefix(f"{_ROOT}/"), content)
    assert list(images(RegistryBucket(bucket, "s3://old"))) == ["team/app"]


def test_a_bucket_without_a_registry_is_refused() -> None:
    bucket = MemoryBucket()
    bucket.write("hosted/sha256/ab/abc", b"mirror")
    with pytest.raises(BundleError, match="s3://old has no data of a registry"):
        RegistryBucket(bucket, "s3://old")


def test_links_that_a_listing_shows_are_not_read() -> None:
    """One request for each tag and each manifest; none for layers."""
    tree = Tree()
    for number in range(20):
        tree.image("team/app", b"layer %d" % number, f"v{number}")
    bucket = tree.bucket()
    repository = only(RegistryBucket(bucket, "s3://old"))
    listed, _ = repository.images("docker.io", routing_table(load(None)))
    for image in listed:
        assert repository.manifest(image.root.digest)
        assert repository.vouches(Digest.of(b"layer 3"))
    assert bucket.calls["read"] == 40
    assert bucket.calls["head"] == 0


def test_what_was_pushed_after_the_listing_is_asked_for() -> None:
    tree = Tree()
    tree.image("team/app", b"layer", "v1")
    bucket = tree.bucket()
    bucket.freeze_listings()
    repository = only(RegistryBucket(bucket, "s3://old"))
    later = tree.image("team/app", b"pushed meanwhile", "v1")
    for name, content in tree.files.items():
        bucket.write(name, content)
    listed, lost = repository.images("docker.io", routing_table(load(None)))
    assert [image.root.digest for image in listed if image.tag] == [later]
    assert lost == []
    assert repository.vouches(Digest.of(b"pushed meanwhile"))
    assert repository.size(Digest.of(b"pushed meanwhile")) == 16


def _reading(bucket: MemoryBucket, content: bytes) -> bytes:
    repository = only(RegistryBucket(bucket, "s3://old"))
    read = bytearray()
    buffer = memoryview(bytearray(100))
    with repository.body(Digest.of(content), 0) as body:
        while count := body.readinto(buffer):
            read += buffer[:count]
    return bytes(read)


def test_a_blob_that_breaks_off_goes_on_where_it_was() -> None:
    tree, content = Tree(), bytes(range(256)) * 4
    tree.image("team/app", content, "v1")
    bucket = tree.bucket()
    bucket.break_bodies(after=150, times=4)
    assert _reading(bucket, content) == content
    assert bucket.calls["open"] == 5


def test_a_bucket_that_gives_no_byte_is_unavailable_and_the_blob_not_damaged() -> None:
    tree = Tree()
    tree.image("team/app", b"layer", "v1")
    bucket = tree.bucket()
    bucket.break_bodies(after=0, times=9)
    with pytest.raises(BucketUnavailable):
        _reading(bucket, b"layer")
    assert bucket.calls["open"] == 3


def test_a_blob_that_went_is_missing() -> None:
    tree = Tree()
    tree.image("team/app", b"layer", "v1")
    bucket = tree.bucket()
    repository = only(RegistryBucket(bucket, "s3://old"))
    bucket.lose(tree.data(Digest.of(b"layer")))
    with pytest.raises(BundleError, match="no longer in the bucket"), repository.body(Digest.of(b"layer"), 0):
        pass


@pytest.mark.parametrize("verb", ["list", "read", "head"])
def test_a_bucket_that_cannot_be_asked_ends_the_plan(verb: str) -> None:
    """Nothing counts as absent because of it."""
    tree = Tree()
    tree.index("team/app", [tree.image("team/app", b"layer"), Digest.of(b"absent")], "v1")
    bucket = tree.bucket()
    data = RegistryBucket(bucket, "s3://old")
    bucket.fail(verb)
    with pytest.raises(BucketUnavailable):
        _use(data)
    assert bucket.pending == []


@dataclass(frozen=True, slots=True)
class Importing:
    """A mirror whose only upstream cannot be reached, and the bucket of an old registry."""

    bucket: MemoryBucket
    config: Path

    def run(self, *words: str) -> Done:
        """Import."""
        reach = self.config.with_name("bucket.toml")
        reach.write_text('[bucket]\nregion = "eu-west-1"\n')
        source: list[str | Path] = ["--registry-data", "s3://old/registry", "--bucket-config", reach]
        return mirror("import", *source, *words, "--json", "-c", self.config)


@pytest.fixture
def importing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Importing:
    """The bucket has an image of two layers, each larger than what a body gives before it breaks off."""
    tree = Tree()
    tree.image("team/app", bytes(range(256)) * 400, "v1")
    tree.image("team/other", b"other" * 1000, "v1")
    bucket = tree.bucket()
    opened = {"s3://old/registry": bucket}
    monkeypatch.setattr("mirror.app.bucket.open_bucket", lambda config: opened[config.store.bucket])
    return Importing(bucket, write_config(tmp_path, {"docker.io": "http://127.0.0.1:9"}))


def test_the_command_takes_the_images_of_a_bucket(importing: Importing) -> None:
    done = importing.run()
    assert (done.status, done.json["source"]) == (0, "s3://old/registry"), done
    assert done.json["images"] == ["docker.io/team/app:v1", "docker.io/team/other:v1"]
    assert importing.bucket.closed
    assert "write" not in importing.bucket.calls
    again = importing.run()
    assert (again.status, again.json["written"]["blobs"]) == (0, 0), again


def test_an_import_that_the_bucket_ends_goes_on_where_it_was(importing: Importing) -> None:
    """Nothing is called damaged, and what was read of a blob is not read again."""
    importing.bucket.break_bodies(after=70_000)
    importing.bucket.break_bodies(after=0, times=3)
    done = importing.run()
    assert done.status == 1
    assert "run the import again to continue" in done.err
    importing.bucket.log.clear()
    done = importing.run()
    assert (done.status, done.json["damaged"]) == (0, {}), done
    partials = list((importing.config.parent / "store/ingest").glob("*"))
    assert partials == []


def test_the_options_of_a_bucket_are_for_a_bucket(importing: Importing, tmp_path: Path) -> None:
    done = mirror("import", "--registry-data", tmp_path, "--bucket-config", tmp_path / "x", "-c", importing.config)
    assert done.status == 2
    assert "--bucket-config is for --registry-data with a bucket only" in done.err


def test_a_bucket_of_another_cloud_needs_settings_of_its_own(tmp_path: Path) -> None:
    config = write_config(tmp_path, {}, store='bucket = "s3://own/mirror"', more='[bucket]\nregion = "eu-west-1"')
    done = mirror("import", "--registry-data", "gs://old", "-c", config)
    assert done.status == 2
    assert "bucket.region: is for buckets of s3://" in done.err
    assert "--bucket-config" in done.err


def _use(data: RegistryData) -> None:
    for repository in data.repositories():
        repository.images("docker.io", routing_table(load(None)))
        repository.size(Digest.of(b"absent"))
