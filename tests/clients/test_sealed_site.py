"""An air gap acted out: a store filled by real pulls, then served sealed, with no upstream at all."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import Library, short_directory
from tests.support.containerd_process import PULLS, ContainerdProcess, write_hosts
from tests.support.images import NATIVE, Published
from tests.support.mirror_process import MirrorProcess, write_config
from tests.support.process import CommandFailed, eventually, run
from tests.support.registry_process import RegistryProcess
from tests.support.skopeo import Skopeo, compare_directory

_TREE = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Gap:
    """The far side: a sealed mirror, its configuration, and what should be in its store."""

    directory: Path
    config: Path
    mirror: MirrorProcess
    images: dict[str, Published]

    def cli(self, *words: str) -> str:
        """Run a command of the mirror and return its output. Raises `CommandFailed`."""
        command, *rest = words
        argv: list[str | Path] = [sys.executable, "-m", "mirror", command, "--config", self.config, *rest]
        return run(argv, env={"PYTHONPATH": str(_TREE)}).decode()

    def json(self, *words: str) -> Any:
        """The same, as JSON."""
        return json.loads(self.cli(*words, "--json"))

    def blob(self, digest: str) -> Path:
        """Its file."""
        encoded = digest.partition(":")[2]
        return self.directory / "store" / "blobs" / "sha256" / encoded[:2] / encoded


@pytest.fixture(scope="module")
def gap(library: Library) -> Iterator[Gap]:
    """`oci` and `many` were pulled whole, of `index` one platform, and nothing else."""
    directory = short_directory()
    try:
        with RegistryProcess(library.docker_root, read_only=True) as docker:
            config = write_config(directory, {"docker.io": docker.url})
            with MirrorProcess(config) as filling:
                skopeo = Skopeo(directory, filling.address)
                for name, options in (("oci", ["--all"]), ("many", ["--all"]), ("index", [])):
                    skopeo.copy(library.images[name].name, directory / "filled", *options)
        config.write_text("offline = true\n" + config.read_text())
        with MirrorProcess(config) as mirror:
            yield Gap(directory, config, mirror, library.images)
    finally:
        shutil.rmtree(directory)


def test_skopeo_pulls_what_is_complete(gap: Gap) -> None:
    """Byte for byte, by tag and by digest."""
    skopeo, image = Skopeo(gap.directory, gap.mirror.address), gap.images["oci"]
    for name in (image.name, f"{image.registry}/{image.repository}@{image.digest}"):
        skopeo.copy(name, gap.directory / "sealed", "--all")
        compare_directory(gap.directory / "sealed", image, every_platform=True)
    skopeo.copy(gap.images["index"].name, gap.directory / "sealed")
    compare_directory(gap.directory / "sealed", gap.images["index"], every_platform=False)


def test_containerd_pulls_what_is_complete(gap: Gap) -> None:
    """With the sealed mirror as the only host that it knows."""
    host = f'[host."{gap.mirror.url}"]{PULLS}'
    hosts = write_hosts(gap.directory / "hosts", {"docker.io": host})
    with ContainerdProcess(gap.directory / "c", hosts=hosts) as containerd:
        for name in ("many", "index"):
            image = gap.images[name]
            options = ("--snapshotter", containerd.snapshotter, "--hosts-dir", str(hosts))
            containerd.ctr("images", "pull", *options, image.name)
            containerd.compare(image, (image.native,))


def test_the_lists(gap: Gap) -> None:
    """`ls` and `show` say how much of each image is here."""
    found = {entry["image"]: entry for entry in map(json.loads, gap.cli("ls", "--json").splitlines())}
    oci, index = gap.images["oci"], gap.images["index"]
    assert found.keys() == {oci.name, index.name, gap.images["many"].name}
    assert found[oci.name]["digest"] == oci.digest
    assert found[index.name]["platforms"] == [NATIVE]
    assert all(entry["complete"] and not entry["missing"] for entry in found.values())
    assert gap.cli("ls", "--incomplete").count("\n") == 1
    text = gap.cli("ls", oci.name.rpartition(":")[0])
    assert oci.name in text
    assert index.name not in text

    shown = gap.json("show", index.name)
    assert shown["digest"] == index.digest
    pulled = {one["platform"]: one["pulled"] for one in shown["manifests"]}
    assert pulled[NATIVE]
    assert list(pulled.values()).count(True) == 1
    assert "complete offline: yes, except for" in gap.cli("show", index.name)
    with pytest.raises(CommandFailed, match=r"exit code 1\n.*is not here"):
        gap.cli("show", "nothing/here")
    with pytest.raises(CommandFailed, match="exit code 2"):
        gap.cli("show", "not an image")


def test_misses_reach_the_connected_side_as_a_list(gap: Gap) -> None:
    """Each image that clients could not get is in the report once, in a form that other commands read, until it is
    cleared.
    """
    gap.cli("misses", "--clear")
    skopeo, image = Skopeo(gap.directory, gap.mirror.address), gap.images["schema2"]
    for _ in range(2):
        with pytest.raises(CommandFailed):
            skopeo.copy(image.name, gap.directory / "sealed")
    eventually(lambda: image.name in gap.cli("misses", "--images").splitlines(), "the miss is written down")
    [entry] = gap.json("misses")
    assert (entry["image"], entry["now"]) == (image.name, "absent")
    status, _, body = gap.mirror.get(f"/v2/{image.repository}/manifests/none")
    assert status == 404
    assert b"not in this sealed mirror" in body
    assert sum(value for name, value in gap.mirror.metrics().items() if "sealed_misses_total" in name) > 2
    assert image.name in gap.cli("misses")
    eventually(lambda: len(gap.json("misses")) == 2, "the other one too")
    assert len(json.loads(gap.cli("misses", "--clear", "--json"))) == 2
    assert gap.json("misses") == []


def test_a_lost_layer_shows_everywhere(gap: Gap) -> None:
    """Flipped on the disk it is found by `verify`, quarantined, named by `ls`, `show` and `misses`; put back, all is
    well again.
    """
    image = gap.images["many"]
    digest = next(iter(gap.images["many"].images[0].blobs))
    file = gap.blob(digest)
    good = file.read_bytes()
    assert json.loads(gap.cli("verify", image.name, "--json"))["damaged"] == 0
    file.chmod(0o600)
    file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))

    with pytest.raises(CommandFailed, match="exit code 1") as failed:
        gap.cli("verify", "--rate", "1GB")
    assert f"damaged and not repaired, set aside: {digest}" in str(failed.value)
    with pytest.raises(CommandFailed, match="exit code 1") as failed:
        gap.cli("verify", image.name, "--no-repair")
    assert f"missing: {image.name}: {digest}" in str(failed.value)
    assert gap.mirror.get(f"/v2/{image.repository}/blobs/{digest}")[0] == 404
    eventually(lambda: gap.cli("misses", "--images").splitlines() == [image.name], "the image is reported")
    [entry] = map(json.loads, gap.cli("ls", "--incomplete", "--json").splitlines())
    assert (entry["image"], entry["missing"]) == (image.name, 1)
    assert gap.json("show", image.name)["manifests"][0]["missing_digests"] == [digest]
    assert f"missing: {digest}" in gap.cli("show", image.name)

    file.write_bytes(good)
    assert "0 damaged" in gap.cli("verify")
    assert gap.cli("misses", "--images") == ""
    assert gap.json("misses")[0]["now"] == "complete"
