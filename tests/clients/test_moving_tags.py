"""Tags that move and upstreams that stop, with a real registry and a real client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.images import Published, Pusher
from tests.support.mirror_process import MirrorProcess, write_config
from tests.support.registry_process import RegistryProcess
from tests.support.skopeo import Skopeo, compare_directory

_REPOSITORY = "library/moving"


@pytest.fixture
def registry(directory: Path) -> Iterator[RegistryProcess]:
    with RegistryProcess(directory / "registry") as process:
        yield process


def _push(registry: RegistryProcess, word: str) -> Published:
    """Move the tag `v1` to an image that says this word."""
    with Pusher(registry.url, _REPOSITORY) as pusher:
        return pusher.tag("docker.io", "v1", pusher.image([{"etc/word": word.encode()}]))


def _manifest_gets(registry: RegistryProcess, since: int) -> list[str]:
    asked = registry.requests()[since:]
    return [request.path for request in asked if request.is_manifest and request.method == "GET"]


def test_a_tag_that_moved_is_followed(registry: RegistryProcess, directory: Path) -> None:
    """Without a time to live every pull asks; what is fetched is the manifest that is new, and nothing if none is."""
    first = _push(registry, "first")
    config = write_config(directory, {"docker.io": registry.url}, tag_ttl="0s")
    with MirrorProcess(config) as mirror:
        skopeo, target = Skopeo(directory, mirror.address), directory / "copy"
        skopeo.copy(first.name, target)
        compare_directory(target, first, every_platform=True)

        before = len(registry.requests())
        skopeo.copy(first.name, target)
        compare_directory(target, first, every_platform=True)
        assert not _manifest_gets(registry, before)

        second = _push(registry, "second")
        before = len(registry.requests())
        skopeo.copy(second.name, target)
        compare_directory(target, second, every_platform=True)
        assert len(_manifest_gets(registry, before)) == 1


def test_a_tag_that_moved_waits_for_its_time(registry: RegistryProcess, directory: Path) -> None:
    """Within the time to live upstream is not asked at all, and the tag stays what it was."""
    first = _push(registry, "first")
    config = write_config(directory, {"docker.io": registry.url}, tag_ttl="12h")
    with MirrorProcess(config) as mirror:
        skopeo, target = Skopeo(directory, mirror.address), directory / "copy"
        skopeo.copy(first.name, target)
        _push(registry, "second")
        before = len(registry.requests())
        skopeo.copy(first.name, target)
        compare_directory(target, first, every_platform=True)
        assert not registry.requests()[before:]


def test_a_stale_tag_is_served_while_upstream_is_stopped(registry: RegistryProcess, directory: Path) -> None:
    """When upstream cannot be asked, the last known image is pulled, and the answer warns."""
    image = _push(registry, "only")
    config = write_config(directory, {"docker.io": registry.url}, tag_ttl="0s")
    with MirrorProcess(config) as mirror:
        skopeo, target = Skopeo(directory, mirror.address), directory / "copy"
        skopeo.copy(image.name, target)
        with registry.stopped():
            skopeo.copy(image.name, target)
            compare_directory(target, image, every_platform=True)
            status, headers, body = mirror.get(f"/v2/{_REPOSITORY}/manifests/v1", {"Accept": image.media_type})
        assert (status, body) == (200, image.content)
        assert headers["Warning"].startswith("299 ")


def test_a_restarted_mirror_needs_no_upstream(registry: RegistryProcess, directory: Path) -> None:
    """Content that one mirror pulled is served from disk alone by the next one on the same directory."""
    image = _push(registry, "kept")
    config = write_config(directory, {"docker.io": registry.url})
    with MirrorProcess(config) as mirror:
        Skopeo(directory, mirror.address).copy(image.name, directory / "copy")
        assert mirror.stop() == 0
    with registry.stopped(), MirrorProcess(config) as mirror:
        Skopeo(directory, mirror.address).copy(image.name, directory / "copy")
        compare_directory(directory / "copy", image, every_platform=True)
