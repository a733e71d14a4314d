"""Pulls that a store has no room for, and pulls while Redis is emptied, hangs and dies."""

from __future__ import annotations

from pathlib import Path

from tests.clients.conftest import Library
from tests.support.images import Published
from tests.support.mirror_process import MirrorProcess, write_config
from tests.support.pulls import expect_each_once, wanted_blobs
from tests.support.redis_server import RedisServer
from tests.support.registry_process import RegistryProcess
from tests.support.skopeo import Skopeo, compare_directory


def test_an_image_larger_than_the_store_is_pulled_all_the_same(library: Library, directory: Path) -> None:
    """A layer that is larger than the store passes through uncached; what fits is stored as usual."""
    big, small = library.images["big"], library.images["oci"]
    with (
        RegistryProcess(library.docker_root, read_only=True) as registry,
        MirrorProcess(write_config(directory, {"docker.io": registry.url}, capacity="32MB")) as mirror,
    ):
        skopeo, target = Skopeo(directory, mirror.address), directory / "copy"
        for _ in range(2):
            skopeo.copy(big.name, target)
            compare_directory(target, big, every_platform=True)
            before = len(registry.requests())
            skopeo.copy(small.name, target)
            compare_directory(target, small, every_platform=True)
        assert not registry.blob_gets(since=before)
        stored = sum(file.stat().st_size for file in (directory / "store").rglob("*") if file.is_file())
        assert stored < 32_000_000


def test_the_least_recently_used_makes_room(library: Library, directory: Path) -> None:
    """A store that holds one large image but not everything keeps within its size, and every pull is right."""
    names = ["many", "big", "oci", "index", "many", "oci", "big"]
    with (
        RegistryProcess(library.docker_root, read_only=True) as registry,
        MirrorProcess(write_config(directory, {"docker.io": registry.url}, capacity="69MB")) as mirror,
    ):
        skopeo, target = Skopeo(directory, mirror.address), directory / "copy"
        for name in names:
            image = library.images[name]
            skopeo.copy(image.name, target)
            compare_directory(target, image, every_platform=not image.is_index)
            stored = sum(file.stat().st_size for file in (directory / "store" / "blobs").rglob("*") if file.is_file())
            assert stored <= 69_000_000
        again = [request.path for request in registry.blob_gets()]
        assert len(again) > len(set(again)), "nothing had to go, so nothing was tried"


def test_redis_may_be_emptied_hung_and_killed_under_pulls(library: Library, directory: Path) -> None:
    """Whatever becomes of Redis, warm pulls ask upstream for no blob, and cold ones work."""
    warm, cold = library.images["many"], library.images["list"]
    with (
        RedisServer() as redis,
        RegistryProcess(library.docker_root, read_only=True) as registry,
        MirrorProcess(
            write_config(directory, {"docker.io": registry.url}, index=redis.url, index_timeout="100ms")
        ) as mirror,
    ):
        skopeo, target = Skopeo(directory, mirror.address), directory / "copy"

        def pull(image: Published) -> dict[str, int]:
            """Pull, and return the bytes that upstream sent, by blob."""
            before = len(registry.requests())
            skopeo.copy(image.name, target, "--all")
            compare_directory(target, image, every_platform=True)
            return registry.sent(since=before)

        expect_each_once(pull(warm), wanted_blobs(warm))
        assert not pull(warm)
        redis.command("FLUSHALL")
        assert not pull(warm)
        redis.pause()
        assert not pull(warm)
        redis.resume()
        redis.kill()
        assert not pull(warm)
        expect_each_once(pull(cold), wanted_blobs(cold, every_platform=True))
        assert not pull(cold)


def test_a_restart_without_its_redis_keeps_everything(library: Library, directory: Path) -> None:
    """A mirror that starts on a full directory with an empty Redis, or with none, serves what is on disk."""
    image = library.images["many"]
    with RegistryProcess(library.docker_root, read_only=True) as registry:
        with RedisServer() as redis:
            config = write_config(directory, {"docker.io": registry.url}, index=redis.url)
            with MirrorProcess(config) as mirror:
                Skopeo(directory, mirror.address).copy(image.name, directory / "copy")
        # an empty one
        with RedisServer() as redis:
            config = write_config(directory, {"docker.io": registry.url}, index=redis.url)
            with MirrorProcess(config) as mirror, registry.stopped():
                Skopeo(directory, mirror.address).copy(image.name, directory / "copy")
                compare_directory(directory / "copy", image, every_platform=True)
        # none
        with MirrorProcess(config) as mirror, registry.stopped():
            Skopeo(directory, mirror.address).copy(image.name, directory / "copy")
            compare_directory(directory / "copy", image, every_platform=True)
