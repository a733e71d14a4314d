"""Small parts of cold layers over several worker processes of one store, some of which are killed."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from mirror.oci.digest import Digest
from mirror.policy.fills.span_blocks import BLOCK
from tests.flows.test_lazy_pulls import asked, each_byte_once
from tests.support.fake_registry import FakeRegistry, stall
from tests.support.forked_workers import ForkedWorkers
from tests.support.live_mirror import noise
from tests.support.mirror_process import write_config
from tests.support.process import eventually
from tests.support.scripted import Stall

_LAYER = noise(8_000_000)
_DIGEST = Digest.of(_LAYER)


@pytest.fixture(autouse=True)
def _content(registry: FakeRegistry) -> None:
    registry.add_image("library/app", "v1", [_LAYER])


def _config(folder: Path, registry: FakeRegistry, *, share: float = 1.0) -> Path:
    config = write_config(folder, {"docker.io": registry.url}, workers=1)
    lazy = f'tag_ttl = "5m"\nranges = "lazy"\nlazy_share = {share}\nlazy_pause = "0s"'
    config.write_text(config.read_text().replace('tag_ttl = "5m"', lazy))
    return config


@pytest.fixture
def workers(tmp_path: Path, registry: FakeRegistry) -> Iterator[tuple[ForkedWorkers, ForkedWorkers]]:
    """Two workers of one store, each at a listener of its own."""
    config = _config(tmp_path, registry)
    with ExitStack() as stack:
        both = stack.enter_context(ForkedWorkers(config)), stack.enter_context(ForkedWorkers(config))
        for each in both:
            each.start()
            _ask(each.port, "manifests/v1")
        yield both


def _ask(port: int, what: str, **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", f"/v2/library/app/{what}", headers=headers)
        answer = connection.getresponse()
        return answer, answer.read()
    finally:
        connection.close()


def _part(port: int, first: int, last: int) -> None:
    answer, body = _ask(port, f"blobs/{_DIGEST}", Range=f"bytes={first}-{last}")
    assert (answer.status, body == _LAYER[first : last + 1]) == (206, True), body[:300]
    assert (answer.getheader("Cache-Status") or "").endswith("detail=unverified")


def test_57_each_byte_comes_once_over_all_workers(
    workers: tuple[ForkedWorkers, ForkedWorkers], registry: FakeRegistry
) -> None:
    parts = [(each.port, at * BLOCK + 7, (at + 14) * BLOCK) for at in range(1, 100, 5) for each in workers]
    with ThreadPoolExecutor(len(parts)) as clients:
        list(clients.map(lambda part: _part(*part), parts))
    fetched = asked(registry, _DIGEST, len(_LAYER))
    assert each_byte_once(fetched)


def test_41_a_restart_keeps_what_is_here(workers: tuple[ForkedWorkers, ForkedWorkers], registry: FakeRegistry) -> None:
    first, _ = workers
    _part(first.port, 5_000_000, 5_200_000)
    fetched = asked(registry, _DIGEST, len(_LAYER))
    for each in workers:
        each.kill()
    first.start()
    _part(first.port, 5_000_000, 5_200_000)
    assert asked(registry, _DIGEST, len(_LAYER)) == fetched


def test_58_another_worker_goes_on_where_one_died(
    workers: tuple[ForkedWorkers, ForkedWorkers], registry: FakeRegistry
) -> None:
    """Its claim ends with it. The client of the other worker gets its part."""
    first, second = workers
    gate = Stall()
    registry.fail("blobs", stall(gate, 100_000))
    with ThreadPoolExecutor(2) as clients:
        lost = clients.submit(_part, first.port, 5_000_000, 5_400_000)
        assert gate.reached.wait(60)
        got = clients.submit(_part, second.port, 5_000_000, 5_400_000)
        first.kill()
        got.result(60)
        gate.release()
        assert isinstance(lost.exception(60), (http.client.HTTPException, OSError, AssertionError))


def test_the_whole_follows_after_a_restart(tmp_path: Path, registry: FakeRegistry) -> None:
    """Of what clients of a mirror have read that ended before the pause was over."""
    config = _config(tmp_path, registry, share=0.0)
    text = config.read_text()
    with ForkedWorkers(config) as workers:
        config.write_text(text.replace('lazy_pause = "0s"', 'lazy_pause = "1d"'))
    with ForkedWorkers(config) as workers:
        workers.start()
        _ask(workers.port, "manifests/v1")
        _part(workers.port, 5_000_000, 5_200_000)
        workers.kill()
    config.write_text(text)
    with ForkedWorkers(config) as workers:
        workers.start()
        blob = tmp_path / "store" / "blobs" / "sha256" / _DIGEST.hex[:2] / _DIGEST.hex
        eventually(blob.exists, "the whole is here")
        assert blob.read_bytes() == _LAYER
    fetched = asked(registry, _DIGEST, len(_LAYER))
    assert each_byte_once(fetched)
    assert sum(stop - start for start, stop in fetched) == len(_LAYER)
