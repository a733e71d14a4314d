"""podman, buildah and skopeo push what they have built or copied to a registry that the mirror hosts."""

from __future__ import annotations

import json
import random
import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.clients.conftest import OPEN_TO_PUSHES, HostingSite
from tests.support.buildah import Buildah
from tests.support.images import Published, sha256
from tests.support.layouts import foreign_layout, write_members
from tests.support.mirror_process import MirrorProcess, write_config
from tests.support.podman import Podman
from tests.support.process import CommandFailed, run
from tests.support.pulls import ALL, OFFLINE
from tests.support.skopeo import compare_directory
from tests.support.tmpfs import tmpfs

#: What requests without the bytes of a base image take at most, heads and small blobs together.
_SMALL = 200_000


@pytest.fixture(scope="module")
def podman(hosting: HostingSite) -> Iterator[Podman]:
    with closing(Podman(hosting.directory / "podman", hosting.address)) as podman:
        yield podman


@pytest.fixture(scope="module")
def buildah(hosting: HostingSite) -> Iterator[Buildah]:
    with closing(Buildah(hosting.directory / "buildah", hosting.address)) as buildah:
        yield buildah


def _context(hosting: HostingSite, name: str, base: str, size: int = 20_000) -> Path:
    """A folder with a Dockerfile that adds one file of noise to a base image."""
    context = hosting.directory / f"context-{name}"
    context.mkdir()
    (context / "own").write_bytes(random.Random(name).randbytes(size))
    (context / "Dockerfile").write_text(f"FROM {base}\nCOPY own /srv/own\n")
    return context


def _copy(*words: str) -> None:
    run(
        ["skopeo", "--insecure-policy", "copy", "--src-tls-verify=false", "--dest-tls-verify=false", *words],
        env=OFFLINE,
    )


def _has_base(pushed: dict[str, int], base: Published) -> bool:
    return {layer.digest for layer in base.native.layers} < pushed.keys()


@pytest.mark.parametrize("form", ["oci", "docker"])
def test_podman_builds_and_pushes(hosting: HostingSite, podman: Podman, form: str) -> None:
    """Both forms of an image, built on one of docker.io that the mirror has: no layer of the base is sent."""
    base = hosting.images["oci"]
    name = f"{hosting.address}/corp/podman/{form}:v1"
    podman("build", "--isolation=chroot", f"--format={form}", "--tag", name, str(_context(hosting, form, base.name)))
    before = hosting.proxy.sent
    podman("push", "--tls-verify=false", name)
    assert hosting.proxy.sent - before < _SMALL
    assert hosting.uploads(f"podman/{form}") == 2
    pushed = hosting.read(f"podman/{form}", "v1")
    assert _has_base(pushed.blobs, base)
    assert ("oci" if form == "oci" else "docker") in pushed.media_type

    podman("push", "--tls-verify=false", name)
    assert hosting.uploads(f"podman/{form}") == 2

    known = podman.inspect(name)["Id"]
    podman("image", "rm", "--force", name)
    podman("pull", "--quiet", "--tls-verify=false", name)
    assert podman.inspect(name)["Id"] == known
    with podman.mounted(name) as root:
        assert (root / "srv/own").read_bytes() == random.Random(form).randbytes(20_000)


def test_podman_pushes_again_after_a_broken_push(hosting: HostingSite, podman: Podman) -> None:
    """A push that breaks off in a layer fails; run again it succeeds, and sends no layer that had arrived."""
    context = hosting.directory / "context-broken"
    context.mkdir()
    lines = ["FROM scratch"]
    for number in range(4):
        (context / f"layer-{number}").write_bytes(random.Random(f"podman {number}").randbytes(600_000))
        lines.append(f"COPY layer-{number} /srv/")
    (context / "Dockerfile").write_text("\n".join(lines))
    name = f"{hosting.address}/corp/podman/broken:v1"
    podman("build", "--isolation=chroot", "--layers", "--tag", name, str(context))
    before = hosting.proxy.sent
    hosting.proxy.break_after(1_600_000)
    with pytest.raises(CommandFailed):
        podman("push", "--tls-verify=false", name)
    hosting.proxy.heal()
    assert hosting.proxy.sent - before >= 1_600_000
    assert hosting.uploads("podman/broken") < 5
    podman("push", "--tls-verify=false", name)
    assert hosting.uploads("podman/broken") == 5
    assert len(hosting.read("podman/broken", "v1").blobs) == 5


def test_buildah_builds_and_pushes(hosting: HostingSite, buildah: Buildah) -> None:
    """Built on an image of docker.io that the mirror has: no layer of the base is sent."""
    base = hosting.images["schema2"]
    name = f"{hosting.address}/corp/buildah/app:v1"
    buildah.build(_context(hosting, "buildah", base.name), name)
    before = hosting.proxy.sent
    policy = ("--signature-policy", buildah.directory / "policy.json")
    buildah("push", *policy, "--tls-verify=false", name, f"docker://{name}")
    assert hosting.proxy.sent - before < _SMALL
    assert hosting.uploads("buildah/app") == 2
    assert _has_base(hosting.read("buildah/app", "v1").blobs, base)


@pytest.mark.parametrize("kind", ALL)
def test_skopeo_copies_what_the_mirror_has(hosting: HostingSite, kind: str) -> None:
    """From docker.io to the hosted registry, every platform, byte for byte: no blob is sent, all are mounted."""
    image = hosting.images[kind]
    target = f"docker://{hosting.address}/corp/skopeo/{kind}:v1"
    # what a proxied repository has here can be mounted
    _copy("--all", f"docker://{hosting.own_name(image)}", f"dir:{hosting.directory}/first")
    before = hosting.proxy.sent
    _copy("--all", f"docker://{hosting.own_name(image)}", target)
    assert hosting.proxy.sent - before < _SMALL
    assert hosting.uploads(f"skopeo/{kind}") == 0
    copied = hosting.directory / "second"
    _copy("--all", target, f"dir:{copied}")
    compare_directory(copied, image, every_platform=True)


@pytest.mark.parametrize("form", ["oci", "v2s2"])
def test_skopeo_pushes_each_format(hosting: HostingSite, form: str) -> None:
    """From a layout on disk, in both formats; `--all` sends an index with all its children."""
    image = hosting.images["list" if form == "oci" else "index"]
    layout, target = hosting.directory / f"layout-{form}", f"docker://{hosting.address}/corp/format/{form}:v1"
    _copy("--all", f"docker://{hosting.own_name(image)}", f"dir:{layout}")
    _copy("--all", "--format", form, f"dir:{layout}", target)
    pushed = hosting.read(f"format/{form}", "v1")
    assert len(pushed.manifest["manifests"]) == len(image.images)
    assert ("oci" if form == "oci" else "docker") in pushed.media_type
    assert {layer.digest for one in image.images for layer in one.layers} <= pushed.blobs.keys()


def test_skopeo_pushes_an_artifact_with_a_subject(hosting: HostingSite) -> None:
    """An SBOM in a layout, copied with its bytes; the subject's list of referrers names it, with its type."""
    image = hosting.images["oci"]
    name = f"{hosting.address}/corp/artifact/app"
    _copy(f"docker://{hosting.own_name(image)}", f"docker://{name}:v1")
    document, empty = b'{"bomFormat": "CycloneDX"}', b"{}"
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": image.native.media_type,
            "artifactType": "application/vnd.cyclonedx+json",
            "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": sha256(empty), "size": len(empty)},
            "layers": [
                {"mediaType": "application/vnd.cyclonedx+json", "digest": sha256(document), "size": len(document)}
            ],
            "subject": {"mediaType": image.media_type, "digest": image.digest, "size": len(image.content)},
            "annotations": {"org.example.kind": "sbom"},
        }
    ).encode()
    layout = hosting.directory / "artifact"
    archive = write_members(hosting.directory / "artifact.tar", foreign_layout({"sbom": manifest}, [document, empty]))
    with tarfile.open(archive) as tar:
        tar.extractall(layout, filter="data")
    _copy(f"oci:{layout}:sbom", f"docker://{name}:sbom")
    assert hosting.read("artifact/app", "sbom").content == manifest
    status, _, body = hosting.mirror.get(f"/v2/corp/artifact/app/referrers/{image.digest}")
    [listed] = json.loads(body)["manifests"]
    assert (status, listed["digest"], listed["size"]) == (200, sha256(manifest), len(manifest))
    assert listed["artifactType"] == "application/vnd.cyclonedx+json"
    assert listed["annotations"] == {"org.example.kind": "sbom"}


def test_skopeo_deletes_and_lists(hosting: HostingSite) -> None:
    """`list-tags` shows what was pushed, until `delete` has taken it; other tags of other images stay."""
    name = f"docker://{hosting.address}/corp/tags/app"
    for tag, kind in (("a", "oci"), ("b", "schema2")):
        _copy(f"docker://{hosting.own_name(hosting.images[kind])}", f"{name}:{tag}")

    def tags() -> list[str]:
        listed: list[str] = json.loads(run(["skopeo", "list-tags", "--tls-verify=false", name], env=OFFLINE))["Tags"]
        return listed

    assert tags() == ["a", "b"]
    run(["skopeo", "delete", "--tls-verify=false", f"{name}:a"], env=OFFLINE)
    assert tags() == ["b"]
    with pytest.raises(CommandFailed, match=r"manifest unknown|not found"):
        _copy(f"{name}:a", f"dir:{hosting.directory}/gone")


def test_skopeo_shows_that_the_disk_is_full(hosting: HostingSite, directory: Path) -> None:
    """A layer of 64 MB on a disk that has no room for it: the status line is shown, and nothing is left."""
    image = hosting.images["big"]
    with (
        tmpfs(directory, "size=90m") as disk,
        MirrorProcess(write_config(disk, {}, workers=1, more=OPEN_TO_PUSHES)) as mirror,
    ):
        with pytest.raises(CommandFailed, match="507 Insufficient Storage: the disk of the mirror has no room"):
            _copy(f"docker://{hosting.own_name(image)}", f"docker://{mirror.address}/corp/big:v1")
        assert mirror.get(f"/v2/corp/big/manifests/{image.digest}")[0] == 404
        assert not list((disk / "store" / "uploads").iterdir())
        assert not [file for file in (disk / "store" / "hosted").glob("*/*/*") if file.stat().st_size > 1 << 20]


def test_podman_pulls_what_skopeo_pushed(hosting: HostingSite, podman: Podman) -> None:
    """Of an index, the image of this machine."""
    image = hosting.images["index"]
    name = f"{hosting.address}/corp/shared/by-skopeo:v1"
    _copy("--all", f"docker://{hosting.own_name(image)}", f"docker://{name}")
    podman("pull", "--quiet", "--tls-verify=false", name)
    assert podman.inspect(name)["Id"] == image.native.config.digest.partition(":")[2]
    with podman.mounted(name) as root:
        assert {path: sha256((root / path).read_bytes()) for path in image.native.files} == dict(image.native.files)
