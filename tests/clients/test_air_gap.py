"""A whole air gap: a mirror with upstreams, a bundle, and a mirror whose upstreams cannot be reached."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.clients.conftest import Site, short_directory
from tests.support.command import mirror
from tests.support.containerd_process import PULLS, ContainerdProcess, write_hosts
from tests.support.images import NATIVE, Published, sha256
from tests.support.mirror_process import MirrorProcess, write_config
from tests.support.process import run
from tests.support.pulls import OFFLINE
from tests.support.redis_server import RedisServer
from tests.support.registry_process import RegistryProcess
from tests.support.skopeo import Skopeo, compare_directory

#: What the bundle holds; the big one is left to other tests.
_EXPORTED = ("oci", "schema2", "index", "list", "many", "umoci")

#: Nobody listens at port 9 (discard).
_NOWHERE = "http://127.0.0.1:9"


@dataclass(frozen=True, slots=True)
class Bundled:
    """A bundle, the images in it, and the configuration of the mirror that wrote it."""

    path: Path
    images: dict[str, Published]
    config: Path


@pytest.fixture(scope="module")
def bundle(site: Site) -> Bundled:
    """Every platform of some images of two registries, pulled by skopeo through the connected mirror, then exported."""
    skopeo = Skopeo(site.directory, site.mirror.address)
    images = {**{name: site.images[name] for name in _EXPORTED}, "foreign": site.foreign["skopeo"]}
    for image in images.values():
        skopeo.copy(image.name, site.directory / "pulled", "--all")
    config, path = site.directory / "mirror.toml", site.directory / "site.tar"
    done = mirror("export", *(image.name for image in images.values()), "-o", path, "--config", config)
    assert done.status == 0, done
    return Bundled(path, images, config)


@pytest.fixture
def isolated() -> Iterator[Path]:
    """The configuration of a mirror without any reachable upstream."""
    directory = short_directory()
    try:
        yield write_config(directory, {"docker.io": _NOWHERE, "ghcr.io": _NOWHERE})
    finally:
        shutil.rmtree(directory)


def _copy_out(source: str, target: Path, *options: str) -> None:
    shutil.rmtree(target, ignore_errors=True)
    run(["skopeo", "--insecure-policy", "copy", *options, source, f"dir:{target}"], env=OFFLINE)


@pytest.mark.parametrize("name", ["oci", "index", "many", "umoci", "foreign"])
def test_skopeo_reads_a_bundle_by_full_name(bundle: Bundled, directory: Path, name: str) -> None:
    """`oci-archive:site.tar:docker.io/library/app:v1` gives exactly what was pushed."""
    image = bundle.images[name]
    _copy_out(f"oci-archive:{bundle.path}:{image.name}", directory / "out", "--all")
    compare_directory(directory / "out", image, every_platform=True)


@pytest.mark.parametrize("name", ["schema2", "list"])
def test_skopeo_reads_a_bundle_of_one_docker_image(bundle: Bundled, directory: Path, name: str) -> None:
    """skopeo looks for names among OCI media types only; a bundle of one image needs no name."""
    image = bundle.images[name]
    assert mirror("export", image.name, "-o", directory / "one.tar", "-c", bundle.config).status == 0
    _copy_out(f"oci-archive:{directory / 'one.tar'}", directory / "out", "--all")
    compare_directory(directory / "out", image, every_platform=True)


def test_skopeo_copies_the_exported_platform_of_a_sparse_index(bundle: Bundled, directory: Path) -> None:
    """The index is in the bundle byte for byte, of its images only the chosen one, and that can be copied."""
    image = bundle.images["index"]
    words: list[str | Path] = [
        "export",
        image.name,
        "--platform",
        NATIVE,
        "-o",
        directory / "one.tar",
        "-c",
        bundle.config,
        "--json",
    ]
    done = mirror(*words)
    assert (done.status, done.json["blobs"]) == (0, 2 + len(image.native.blobs)), done
    _copy_out(f"oci-archive:{directory / 'one.tar'}:{image.name}", directory / "out")
    compare_directory(directory / "out", image, every_platform=False)


def test_umoci_reads_a_bundle_in_a_folder(bundle: Bundled, directory: Path) -> None:
    """An exported folder is an image layout to it, whose image it can unpack."""
    image = bundle.images["oci"]
    assert mirror("export", image.name, "-o", f"{directory}/layout/", "-c", bundle.config).status == 0
    run(["umoci", "unpack", "--image", f"{directory / 'layout'}:{image.name}", directory / "unpacked"])
    for path, digest in image.native.files.items():
        assert sha256((directory / "unpacked/rootfs" / path).read_bytes()) == digest


def test_containerd_imports_a_bundle_under_its_names(bundle: Bundled, containerd: ContainerdProcess) -> None:
    """`ctr images import` finds every image in it, by its name."""
    containerd.ctr("images", "import", "--all-platforms", "--no-unpack", str(bundle.path), namespace="bundle")
    listed = containerd.ctr("images", "ls", "-q", namespace="bundle").decode().split()
    assert set(listed) == {image.name for image in bundle.images.values()}
    for image in bundle.images.values():
        containerd.compare(image, image.images, namespace="bundle")


def test_skopeo_pulls_what_was_imported(bundle: Bundled, isolated: Path, directory: Path) -> None:
    """Right after an import beside a running mirror, complete images are pulled from it, upstream or not."""
    with MirrorProcess(isolated) as running:
        done = mirror("import", bundle.path, "--config", isolated, "--json")
        assert done.status == 0, done
        assert set(done.json["images"]) == {image.name for image in bundle.images.values()}
        skopeo = Skopeo(directory, running.address)
        for image in bundle.images.values():
            skopeo.copy(image.name, directory / "out", "--all")
            compare_directory(directory / "out", image, every_platform=True)


def test_containerd_pulls_what_was_imported(bundle: Bundled, isolated: Path, directory: Path) -> None:
    """containerd, which says `?ns=`, has complete images from a sealed mirror that was filled by a bundle alone."""
    assert mirror("import", bundle.path, "--config", isolated).status == 0
    with MirrorProcess(isolated, env={"MIRROR__OFFLINE": "true"}) as running:
        section = f'[host."{running.url}"]{PULLS}'
        hosts = write_hosts(directory / "hosts", {"docker.io": section, "ghcr.io": section})
        with ContainerdProcess(directory / "c", hosts=hosts) as containerd:
            for image in bundle.images.values():
                containerd.ctr(
                    "images", "pull", "--snapshotter", containerd.snapshotter, "--hosts-dir", str(hosts), image.name
                )
                containerd.compare(image, (image.native,))


@pytest.mark.parametrize("with_redis", [False, True])
def test_an_import_ends_a_remembered_404(bundle: Bundled, directory: Path, with_redis: bool) -> None:
    """A tag and a blob that upstream did not know a moment ago are served as soon as they are imported.

    With Redis all workers remember what upstream did not know.
    """
    image = bundle.images["oci"]
    with contextlib.ExitStack() as stack:
        empty = stack.enter_context(RegistryProcess(directory / "empty"))
        index = stack.enter_context(RedisServer()).url if with_redis else ""
        config = write_config(directory, {"docker.io": empty.url, "ghcr.io": _NOWHERE}, index=index)
        running = stack.enter_context(MirrorProcess(config))
        tag = f"/v2/{image.repository}/manifests/{image.tag}"
        blobs = [f"/v2/{image.repository}/blobs/{digest}" for digest in image.blobs]
        for path in (tag, *blobs):
            assert running.get(path)[0] == 404
        assert mirror("import", bundle.path, "--config", config).status == 0
        status, _, body = running.get(tag)
        assert (status, sha256(body)) == (200, image.digest)
        for path in blobs:
            status, _, body = running.get(path)
            assert (status, sha256(body)) == (200, path.rpartition("/")[2])


def test_a_difference_is_enough_for_a_site_that_has_the_rest(bundle: Bundled, isolated: Path, directory: Path) -> None:
    """By the isolated side's inventory only what it lacks is exported, and it then has both."""
    first, second = bundle.images["oci"], bundle.images["index"]
    one, both, less = directory / "one.tar", directory / "both.tar", directory / "less.tar"
    assert mirror("export", first.name, "-o", one, "-c", bundle.config).status == 0
    assert mirror("import", one, "-c", isolated).status == 0
    inventory = directory / "inventory.json"
    inventory.write_text(mirror("inventory", "--json", "-c", isolated).out)
    names = [first.name, second.name]
    assert mirror("export", *names, "-o", both, "-c", bundle.config).status == 0
    done = mirror("export", *names, "--since", inventory, "-o", less, "-c", bundle.config, "--json")
    assert done.json["left_out"] == {"blobs": len(first.blobs), "bytes": sum(first.blobs.values())}
    assert both.stat().st_size - less.stat().st_size > sum(first.blobs.values())
    assert mirror("import", less, "-c", isolated).status == 0
    with MirrorProcess(isolated) as running:
        skopeo = Skopeo(directory, running.address)
        for image in (first, second):
            skopeo.copy(image.name, directory / "out", "--all")
            compare_directory(directory / "out", image, every_platform=True)


def test_a_difference_is_refused_where_the_rest_is_not(bundle: Bundled, isolated: Path, directory: Path) -> None:
    """The blobs that the bundle omits for another site are named, and nothing is imported."""
    image = bundle.images["oci"]
    inventory, less = directory / "inventory.json", directory / "less.tar"
    inventory.write_text(mirror("inventory", "--json", "-c", bundle.config).out)
    done = mirror("export", image.name, "--since", inventory, "-o", less, "-c", bundle.config)
    assert done.status == 0, done
    done = mirror("import", less, "-c", isolated)
    assert done.status == 1
    assert all(digest in done.err for digest in image.blobs)
    assert json.loads(mirror("inventory", "--json", "-c", isolated).out)["blobs"] == []


@pytest.mark.parametrize("form", ["oci", "oci-archive"])
def test_a_layout_of_skopeo_is_imported(
    site: Site, bundle: Bundled, isolated: Path, directory: Path, form: str
) -> None:
    """With the full name that skopeo was given, or with `--name` for a bare tag."""
    image = bundle.images["index"]
    place = f"{form}:{directory / 'made'}"
    source = ["docker://" + site.docker.address + "/" + image.repository + ":v1"]
    copy = ["skopeo", "--insecure-policy", "copy", "--all", "--src-tls-verify=false", *source]
    run([*copy, f"{place}:{image.name}"])
    assert mirror("import", directory / "made", "-c", isolated, "--dry-run").status == 0
    if (directory / "made").is_dir():
        shutil.rmtree(directory / "made")
    else:
        (directory / "made").unlink()
    run([*copy, f"{place}:v1"])
    done = mirror("import", directory / "made", "-c", isolated)
    assert (done.status, "--name" in done.err) == (1, True), done
    done = mirror("import", directory / "made", "--name", f"docker.io/{image.repository}", "-c", isolated)
    assert done.status == 0, done
    with MirrorProcess(isolated) as running:
        skopeo = Skopeo(directory, running.address)
        skopeo.copy(image.name, directory / "out", "--all")
        compare_directory(directory / "out", image, every_platform=True)
