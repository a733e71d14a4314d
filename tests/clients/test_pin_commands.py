"""Pins between processes: the command line beside a running mirror, real registries, and skopeo as the client."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command import output
from tests.support.images import NATIVE, Published, Pusher
from tests.support.mirror_process import MirrorProcess, write_config
from tests.support.process import CommandFailed, eventually
from tests.support.registry_process import RegistryProcess
from tests.support.skopeo import Skopeo, compare_directory

#: Bytes of each layer; of twelve such images three times as much as the store may hold.
LAYER = 500_000
CAPACITY = 4_000_000
_INDEX = "application/vnd.oci.image.index.v1+json"


def publish(url: str, name: str, *, platforms: tuple[str, ...] = (NATIVE,)) -> Published:
    """An image of two layers for each platform; it shares nothing with other images."""
    with Pusher(url, f"library/{name}") as pusher:
        images = [
            pusher.image(
                [{f"srv/{n}": random.Random(f"{name} {platform} {n}").randbytes(LAYER)} for n in range(2)],
                platform=platform,
            )
            for platform in platforms
        ]
        return pusher.tag("docker.io", "v1", *images, index=_INDEX if len(images) > 1 else None)


@pytest.fixture
def registry(directory: Path) -> Iterator[RegistryProcess]:
    """The upstream."""
    with RegistryProcess(directory / "docker") as process:
        yield process


def mirror(config: Path, *words: str) -> str:
    """Run one command and return its output. Raises `CommandFailed`."""
    return output(*words, "--config", config)


def test_a_pinned_image_outlives_pressure_and_upstream(registry: RegistryProcess, directory: Path) -> None:
    """Pinned beside a running mirror of two workers, an index stays pullable with every platform, although three times
    the capacity passes through and upstream is stopped then; what was not pinned is gone.
    """
    pinned = publish(registry.url, "pinned", platforms=(NATIVE, "linux/s390x"))
    others = [publish(registry.url, f"other-{number}") for number in range(12)]
    config = write_config(directory, {"docker.io": registry.url}, capacity=f"{CAPACITY}B", tag_ttl="1s")
    # a client that wants what is gone is told so at once, when upstream is
    with MirrorProcess(config, env={"MIRROR__SERVER__WAIT_FOR_UPSTREAM": "0s"}) as running:
        skopeo = Skopeo(directory, running.address)
        assert "not here yet" in mirror(config, "pin", pinned.name, "--reason", "the base of everything")
        skopeo.copy(pinned.name, directory / "before", "--all")
        [listed] = json.loads(mirror(config, "pins", "--json"))
        assert (listed["image"], listed["digest"], listed["state"]) == (pinned.name, pinned.digest, "complete")
        for image in others:
            skopeo.copy(image.name, directory / "other")
            compare_directory(directory / "other", image, every_platform=True)
        eventually(lambda: stored(directory) <= CAPACITY, "the store is within its capacity")
        registry.stop()
        skopeo.copy(pinned.name, directory / "after", "--all")
        compare_directory(directory / "after", pinned, every_platform=True)
        with pytest.raises(CommandFailed):
            skopeo.copy(others[0].name, directory / "other")
        assert running.stop() == 0
        assert not [line for line in running.log if line["level"] == "error"]


def stored(directory: Path) -> int:
    """Bytes of all blobs on disk."""
    sizes = []
    for file in (directory / "store/blobs").rglob("*"):
        try:
            sizes.append(file.stat().st_size if file.is_file() else 0)
        except FileNotFoundError:
            continue  # evicted meanwhile
    return sum(sizes)


def test_the_life_of_a_pin(registry: RegistryProcess, directory: Path) -> None:
    """Pinned, listed, explained by what would go and what not, unpinned, and gone with the next eviction."""
    image, other = publish(registry.url, "app"), publish(registry.url, "other")
    config = write_config(directory, {"docker.io": registry.url})
    with MirrorProcess(config) as running:
        skopeo = Skopeo(directory, running.address)
        for each in (image, other):
            skopeo.copy(each.name, directory / "copy")
    small = directory / "small.toml"
    small.write_text(config.read_text().replace('"10GB"', '"1kB"'))

    assert mirror(config, "pin", "app:v1", "--until", "30d") == f"{image.name}: pinned, complete\n"
    said = mirror(config, "pins")
    assert image.name in said
    assert "1 pinned image" in said
    listed = mirror(small, "evict", "--dry-run")
    assert other.name in listed
    assert "its image was the least recently used" in listed
    assert image.name not in listed
    plan = json.loads(mirror(small, "evict", "--dry-run", "--json"))
    [group] = plan["images"]
    assert (group["names"], group["digest"]) == ([other.name], other.digest)
    assert {each["digest"] for each in group["blobs"]} == {other.digest, *other.blobs}
    assert plan["bytes"] == group["bytes"] == sum(each["size"] for each in group["blobs"])
    before = stored(directory)
    mirror(small, "evict")
    assert stored(directory) == before - plan["bytes"]

    assert mirror(config, "unpin", "app:v1") == f"{image.name}: unpinned\n"
    with pytest.raises(CommandFailed, match="was not pinned"):
        mirror(config, "unpin", "app:v1")
    assert json.loads(mirror(config, "pins", "--json")) == []
    assert json.loads(mirror(small, "evict", "--json"))["images"][0]["names"] == [image.name]
    assert stored(directory) == 0


def test_pins_by_rule_and_what_is_missing(registry: RegistryProcess, directory: Path) -> None:
    """A rule's images are listed with its pattern and with what is missing of them; unpinning one says why it stays."""
    image = publish(registry.url, "app")
    rule = '[[pin]]\nmatch = "docker.io/library/*:v*"\nreason = "the platform"'
    config = write_config(directory, {"docker.io": registry.url}, more=rule)
    with MirrorProcess(config) as running:
        Skopeo(directory, running.address).copy(image.name, directory / "copy")
    lost = image.images[0].layers[0].digest.removeprefix("sha256:")
    (directory / "store/blobs/sha256" / lost[:2] / lost).unlink()
    [listed] = json.loads(mirror(config, "pins", "--json"))
    assert (listed["rule"], listed["reason"], listed["state"]) == (
        "docker.io/library/*:v*",
        "the platform",
        "incomplete",
    )
    assert listed["missing_digests"] == [f"sha256:{lost}"]
    assert "incomplete: 1 layer missing" in mirror(config, "pins")
    mirror(config, "pin", f"app@{image.digest}")
    said = mirror(config, "unpin", f"app@{image.digest}")
    assert "still protected by the rule docker.io/library/*:v*" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pin", "app:v1", "--until", "yesterday"], "--until: not a date"),
        (["pin", "App", "nowhere.example/x", "app:v1"], "nowhere.example is not configured"),
        (["unpin", "app@sha256:12"], "64 lower-case hex digits"),
    ],
)
def test_arguments_that_make_no_sense(directory: Path, words: list[str], said: str) -> None:
    """Exit status 2, the mistake named, and nothing pinned."""
    config = write_config(directory, {"docker.io": "http://127.0.0.1:1"})
    with pytest.raises(CommandFailed) as caught:
        mirror(config, *words)
    assert said in str(caught.value)
    assert "exit code 2" in str(caught.value)
    assert not list((directory / "store").glob("pins/*"))
