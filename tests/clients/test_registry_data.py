"""Moving from a docker-registry: its data is taken in, from a disk or a bucket, and clients pull what was there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.conftest import Library, short_directory
from tests.support.command import mirror
from tests.support.engines.seaweedfs import SeaweedFS
from tests.support.images import NATIVE, Published, Pusher, publish_small
from tests.support.mirror_process import MirrorProcess, write_config
from tests.support.process import eventually, run
from tests.support.pulls import ALL, OFFLINE
from tests.support.registry_process import RegistryProcess
from tests.support.skopeo import Skopeo, compare_directory


@pytest.fixture
def isolated() -> Iterator[Path]:
    """The configuration of a mirror without any reachable upstream."""
    directory = short_directory()
    try:
        yield write_config(directory, {"docker.io": "http://127.0.0.1:9", "ghcr.io": "http://127.0.0.1:9"})
    finally:
        shutil.rmtree(directory)


def _expect_pulls(config: Path, images: dict[str, Published], *, every_platform: bool = True) -> None:
    options = ["--all"] if every_platform else []
    with MirrorProcess(config) as running:
        skopeo = Skopeo(config.parent, running.address)
        for image in images.values():
            skopeo.copy(image.name, config.parent / "out", *options)
            compare_directory(config.parent / "out", image, every_platform=every_platform)


def test_every_kind_of_image_is_taken_in(library: Library, isolated: Path) -> None:
    """Pushed by skopeo and others into a real registry, each is pulled complete from a mirror that has no upstream."""
    done = mirror("import", "--registry-data", library.docker_root / "data", "-c", isolated, "--json")
    assert done.status == 0, done
    assert set(done.json["images"]) == {library.images[name].name for name in ALL}
    _expect_pulls(isolated, library.images)
    # once more there is nothing to do; the folder `v2` itself will do, too
    again: list[str | Path] = ["import", "--registry-data", library.docker_root / "data/docker/registry/v2"]
    done = mirror(*again, "-c", isolated, "--json")
    assert (done.status, done.json["written"]["blobs"]) == (0, 0), done


def test_it_is_filed_under_another_registry(library: Library, isolated: Path) -> None:
    """`--as` names the registry of the images."""
    root = library.ghcr_root / "data"
    done = mirror("import", "--registry-data", root, "--as", "ghcr.io", "-c", isolated)
    assert done.status == 0, done
    _expect_pulls(isolated, library.foreign)


def test_a_pull_through_registry(library: Library, isolated: Path, directory: Path) -> None:
    """Its data is taken as far as it has any: of an index that one platform was pulled of, that one."""
    image = library.images["index"]
    with (
        RegistryProcess(library.docker_root, read_only=True) as upstream,
        RegistryProcess(directory / "proxy", proxy=upstream.url) as proxy,
    ):
        source = f"docker://{proxy.address}/{image.repository}:{image.tag}"
        run(
            ["skopeo", "--insecure-policy", "copy", "--src-tls-verify=false", source, f"dir:{directory / 'pulled'}"],
            env=OFFLINE,
        )
        data = directory / "proxy/data"
        # it stores what it serves behind the answer
        blobs = [data / "docker/registry/v2/blobs/sha256" / one[7:9] / one[7:] / "data" for one in image.native.blobs]
        eventually(lambda: all(blob.exists() for blob in blobs), "the proxy has stored every blob")
        eventually(lambda: (data / "scheduler-state.json").exists(), "the proxy has written its state")
    done = mirror("import", "--registry-data", data, "-c", isolated, "--json")
    assert (done.status, done.json["images"]) == (0, [image.name]), done
    assert done.json["written"]["blobs"] == 2 + len(image.native.blobs)
    _expect_pulls(isolated, {"index": image}, every_platform=False)


def test_what_is_damaged_there_is_named_and_the_rest_taken(isolated: Path, directory: Path) -> None:
    """A layer of wrong bytes, one that a crash left empty, a manifest that is gone: exit status 1, the rest is good."""
    with RegistryProcess(directory / "registry") as registry:
        good, wrong, empty, gone = (
            publish_small(registry.url, "docker.io", f"library/{name}") for name in ("good", "wrong", "empty", "gone")
        )
    data = directory / "registry/data"
    blobs = data / "docker/registry/v2/blobs/sha256"

    def place(digest: str) -> Path:
        return blobs / digest[7:9] / digest[7:] / "data"

    layer = place(wrong.native.layers[0].digest)
    layer.write_bytes(bytes(layer.stat().st_size))
    place(empty.native.layers[0].digest).write_bytes(b"")
    shutil.rmtree(place(gone.digest).parent)
    done = mirror("import", "--registry-data", data, "-c", isolated, "--json")
    assert done.status == 1, done
    damaged = {image.native.layers[0].digest for image in (wrong, empty)}
    assert done.json["damaged"].keys() == damaged
    assert done.json["refused"] == {"library/gone:v1": "its manifest is missing or damaged"}
    assert set(done.json["images"]) == {good.name, wrong.name, empty.name}
    _expect_pulls(isolated, {"good": good})


def test_images_known_by_digest_alone(isolated: Path, directory: Path) -> None:
    """A manifest that no tag and no index names is taken in too."""
    with RegistryProcess(directory / "registry") as registry, Pusher(registry.url, "team/app") as pusher:
        image = pusher.image([{"etc/x": b"by digest"}], platform=NATIVE)
    done = mirror("import", "--registry-data", directory / "registry/data", "-c", isolated, "--json")
    assert (done.status, done.json["images"]) == (0, [f"docker.io/team/app@{image.digest}"]), done


def test_the_data_of_a_registry_in_a_bucket(isolated: Path, directory: Path, seaweedfs: SeaweedFS) -> None:
    """Pushed through its own driver for S3, with a root directory; once more there is nothing to do."""
    bucket = seaweedfs.access.below("old/registry")
    settings, name = bucket.settings, bucket.url.removeprefix("s3://").partition("/")[0]
    driver = {
        "accesskey": settings["access_key"],
        "secretkey": settings["secret_key"],
        "region": settings["region"],
        "regionendpoint": settings["endpoint"],
        "bucket": name,
        "secure": False,
        "rootdirectory": "/old/registry",
    }
    with RegistryProcess(directory / "registry", storage={"s3": driver}) as registry:
        images = {
            name: publish_small(registry.url, "docker.io", f"library/{name}") for name in ("first", "second", "third")
        }
    reach = directory / "bucket.toml"
    reach.write_text(bucket.table())
    words: list[str | Path] = ["import", "--registry-data", bucket.url, "--bucket-config", reach, "-c", isolated]
    done = mirror(*words, "--json")
    assert (done.status, set(done.json["images"])) == (0, {image.name for image in images.values()}), done
    _expect_pulls(isolated, images)
    again = mirror(*words, "--json")
    assert (again.status, again.json["written"]["blobs"]) == (0, 0), again


def test_a_link_in_the_data_is_not_followed(isolated: Path, directory: Path) -> None:
    """A blob that is a link to some other file is as good as damaged."""
    with RegistryProcess(directory / "registry") as registry:
        image = publish_small(registry.url, "docker.io", "library/app")
        other = publish_small(registry.url, "docker.io", "library/other")
    digest = image.native.layers[0].digest
    layer = directory / "registry/data/docker/registry/v2/blobs/sha256" / digest[7:9] / digest[7:] / "data"
    layer.rename(directory / "elsewhere")
    layer.symlink_to(directory / "elsewhere")
    done = mirror("import", "--registry-data", directory / "registry/data", "-c", isolated)
    assert (done.status, f"damaged: {digest}" in done.err) == (1, True), done
    _expect_pulls(isolated, {"other": other})


def test_a_folder_that_is_no_registry(isolated: Path, directory: Path) -> None:
    """It is refused at once."""
    done = mirror("import", "--registry-data", directory, "-c", isolated)
    assert (done.status, "not the data directory of a registry" in done.err) == (1, True), done
