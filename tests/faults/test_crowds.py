"""Rows 57 and 59: many clients, workers and replicas want one blob that is not here yet."""

from __future__ import annotations

import resource
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from mirror.oci.digest import Digest
from tests.faults.conftest import Tally
from tests.flows.test_lazy_pulls import asked, each_byte_once
from tests.support.crowd import Crowd, Outcome
from tests.support.fake_registry import FakeRegistry, stall
from tests.support.forked_workers import ForkedWorkers
from tests.support.live_mirror import noise
from tests.support.mirror_process import MirrorProcess, write_config
from tests.support.process import PATIENCE
from tests.support.redis_server import RedisServer
from tests.support.scripted import Stall
from tests.support.several_connections import CONNECTIONS

_TAG = "/v2/library/app/manifests/v1"


@contextmanager
def _descriptors(wanted: int) -> Iterator[None]:
    """This process may have so many meanwhile; mirrors take what they may have themselves."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard == resource.RLIM_INFINITY or hard >= wanted, f"{wanted} descriptors are needed, {hard} are allowed"
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _written(tmp_path: Path, content: bytes) -> Path:
    file = tmp_path / "expected"
    file.write_bytes(content)
    return file


def _target(content: bytes) -> str:
    return f"/v2/library/app/blobs/{Digest.of(content)}"


def _expect_whole(crowd: Crowd) -> None:
    wrong = [
        client
        for client in crowd.clients
        if (client.outcome, client.status, client.received, client.wrong_at)
        != (Outcome.COMPLETE, 200, crowd.size, None)
    ]
    assert not wrong, f"{len(wrong)} of {len(crowd.clients)}: {wrong[:5]}"


def test_57_a_thousand_clients_over_several_workers(registry: FakeRegistry, tmp_path: Path, tally: Tally) -> None:
    """Row 57: 1,000 clients over four workers ask for one cold blob while it comes: upstream is asked once and sends it
    once, every client gets bytes before the download is over, and all of them.
    """
    content = noise(2 << 20)
    half = len(content) // 2
    registry.add_image("library/app", "v1", [content])
    gate = Stall()
    registry.fail("blobs", stall(gate, after=half))
    # upstream says nothing until everybody is there, however long that takes
    config = write_config(tmp_path, {"docker.io": registry.url}, workers=4, upstream='read_timeout = "1h"')
    with (
        _descriptors(2048),
        MirrorProcess(config) as mirror,
        Crowd(mirror.port, _target(content), _written(tmp_path, content)) as crowd,
    ):
        mirror.wait_for_workers(4)
        assert mirror.get(_TAG)[0] == 200
        crowd.join(1000)
        crowd.begin()
        used = len(set(mirror.workers_of([client.connection for client in crowd.clients])))
        assert used == 4
        gate.release()
        crowd.finish()
        _expect_whole(crowd)
    asked = [request.header("Range") for request in registry.of_kind("blobs", "GET")]
    tally(clients=len(crowd.clients), workers=used, bytes=crowd.size, gets=len(asked))
    assert asked == [None]


def test_57_a_thousand_clients_of_a_blob_in_parts(registry: FakeRegistry, tmp_path: Path, tally: Tally) -> None:
    """Row 57: the same while the blob comes over several connections: upstream sends each byte once."""
    content = noise(1 << 20)
    registry.add_image("library/app", "v1", [content])
    gates = [Stall() for _ in range(CONNECTIONS)]
    for gate in gates:
        registry.fail("blobs", stall(gate, after=100_000))
    config = write_config(tmp_path, {"docker.io": registry.url}, workers=1, upstream='read_timeout = "1h"')
    with _descriptors(2048), ExitStack() as stack:
        first = stack.enter_context(ForkedWorkers(config, small_parts=True))
        workers = [
            first,
            *(stack.enter_context(ForkedWorkers(config, beside=first, small_parts=True)) for _ in range(3)),
        ]
        for worker in workers:
            worker.start()
        with urllib.request.urlopen(f"http://127.0.0.1:{first.port}{_TAG}", timeout=PATIENCE) as answer:
            assert answer.status == 200
        crowd = stack.enter_context(Crowd(first.port, _target(content), _written(tmp_path, content)))
        crowd.join(1000)
        crowd.begin()
        assert all(gate.reached.wait(PATIENCE) for gate in gates)
        for gate in gates:
            gate.release()
        crowd.finish()
        _expect_whole(crowd)
        for worker in workers:
            worker.stop()
    ranges = asked(registry, Digest.of(content), len(content))
    tally(clients=len(crowd.clients), workers=len(workers), bytes=crowd.size, gets=len(ranges))
    assert each_byte_once(ranges)
    assert sum(stop - start for start, stop in ranges) == len(content)


@pytest.mark.parametrize("shared", [False, True], ids=["alone", "redis"])
def test_59_two_replicas_ask_at_most_twice(registry: FakeRegistry, tmp_path: Path, shared: bool, tally: Tally) -> None:
    """Row 59: two replicas with disks of their own, with and without one Redis, both asked for one cold blob by many at
    once: each downloads it once, 2.00x and no more; afterwards neither asks again.
    """
    content = noise(1 << 20)
    registry.add_image("library/app", "v1", [content])
    expected = _written(tmp_path, content)
    with ExitStack() as stack:
        index = stack.enter_context(RedisServer()).url if shared else ""
        mirrors = _replicas(stack, registry, tmp_path, index)
        crowds = [stack.enter_context(Crowd(mirror.port, _target(content), expected)) for mirror in mirrors]
        for mirror in mirrors:
            assert mirror.get(_TAG)[0] == 200
        for crowd in crowds * 2:
            crowd.join(20)
        for crowd in crowds:
            crowd.finish()
            _expect_whole(crowd)
        asked = registry.of_kind("blobs", "GET")
        tally(replicas=2, gets=len(asked))
        assert [request.header("Range") for request in asked] == [None, None]
        for crowd in crowds:
            crowd.join(1)
            crowd.finish()
            _expect_whole(crowd)
        assert registry.count("blobs", "GET") == 2


@pytest.mark.parametrize("shared", [False, True], ids=["alone", "redis"])
def test_59_each_digest_at_one_replica(registry: FakeRegistry, tmp_path: Path, shared: bool, tally: Tally) -> None:
    """Row 59: with each digest sent to one replica, as the ingress does it, every blob is downloaded once, 1.00x; and
    where a replica is lost, the other serves its share.
    """
    contents = [noise(200_000, seed=number) for number in range(8)]
    registry.add_image("library/app", "v1", contents)
    with ExitStack() as stack:
        index = stack.enter_context(RedisServer()).url if shared else ""
        mirrors = _replicas(stack, registry, tmp_path, index)

        def chosen(content: bytes) -> MirrorProcess:
            return mirrors[Digest.of(content).hex[0] in "01234567"]

        assert {chosen(content).port for content in contents} == {mirror.port for mirror in mirrors}
        for mirror in mirrors:
            assert mirror.get(_TAG)[0] == 200
        for _ in range(3):
            for content in contents:
                assert chosen(content).get(_target(content))[2] == content
        tally(replicas=2, blobs=len(contents), gets=registry.count("blobs", "GET"))
        assert registry.count("blobs", "GET") == len(contents)
        assert registry.count("manifests", "GET") <= len(mirrors)
        mirrors[0].stop()
        for content in contents:
            assert mirrors[1].get(_target(content))[2] == content


def _replicas(stack: ExitStack, registry: FakeRegistry, tmp_path: Path, index: str) -> list[MirrorProcess]:
    mirrors = []
    for number in range(2):
        folder = tmp_path / f"replica-{number}"
        folder.mkdir()
        config = write_config(folder, {"docker.io": registry.url}, workers=1, index=index)
        mirrors.append(stack.enter_context(MirrorProcess(config)))
    return mirrors
