"""Row 43: a machine whose clock is set, under a whole running mirror."""

from __future__ import annotations

from pathlib import Path

import pytest

from mirror.oci.digest import Digest
from tests.support.fake_registry import FakeRegistry
from tests.support.faketime import FakeTime
from tests.support.live_mirror import noise
from tests.support.mirror_process import MirrorProcess, write_config
from tests.support.process import eventually
from tests.support.redis_server import RedisServer

_LAYERS = {f"library/app-{number}": noise(50_000, seed=number) for number in range(3)}


def _pull_all(mirror: MirrorProcess) -> None:
    for name, layer in _LAYERS.items():
        assert mirror.get(f"/v2/{name}/manifests/v1")[0] == 200
        assert mirror.get(f"/v2/{name}/blobs/{Digest.of(layer)}")[2] == layer


def _year(mirror: MirrorProcess, mark: str) -> int:
    """As the mirror's log has it."""
    assert mirror.get(f"/v2/?{mark}")[0] == 200
    [line] = eventually(lambda: mirror.requests(path=f"/v2/?{mark}") or None, "the request is logged")
    return int(line["time"][:4])


@pytest.mark.parametrize("kind", ["embedded", "redis"])
def test_43_the_clock_is_set_under_a_running_mirror(registry: FakeRegistry, tmp_path: Path, kind: str) -> None:
    """Row 43: a clock set ahead or back by a year costs no pull, no blob and no manifest: tags are asked for again, by
    HEAD, and nothing is evicted.
    """
    for name, layer in _LAYERS.items():
        registry.add_image(name, "v1", [layer])
    clock = FakeTime(tmp_path)
    root = tmp_path / "store"
    with RedisServer() as redis:
        # two thirds full: there would be something to evict if anything seemed too much or too old
        config = write_config(
            tmp_path,
            {"docker.io": registry.url},
            workers=1,
            capacity="225KB",
            index=redis.url if kind == "redis" else "",
        )
        with MirrorProcess(config, env=clock.environment) as mirror:
            _pull_all(mirror)
            today = _year(mirror, "before")
            blobs = eventually(
                lambda: found if len(found := _blobs(root)) == 2 * len(_LAYERS) else None, "all is stored"
            )
            registry.forget()
            for days in (365, -365, 0):
                clock.set(days)
                assert _year(mirror, f"days={days}") == today + days // 365
                for _ in range(2):
                    _pull_all(mirror)
                assert mirror.metrics()["mirror_evicted_blobs_total"] == 0
                assert _blobs(root) == blobs
            assert registry.count("blobs", "GET") == registry.count("manifests", "GET") == 0
            assert mirror.get("/livez")[0] == mirror.get("/readyz")[0] == 200
            assert not [line for line in mirror.log if line.get("level") == "error"]


def _blobs(root: Path) -> set[str]:
    return {file.name for file in (root / "blobs").glob("*/*/*")}
