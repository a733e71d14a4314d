"""Many clients on one cold blob, with several workers, and what happens to them when one of those dies in mid-blob."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Final

import pytest

from mirror.oci.digest import Digest
from mirror.store.local.layout import Layout
from tests.clients.conftest import Library
from tests.support.crowd import Client, Crowd, Outcome
from tests.support.gated_registry import BlobRequest, GatedRegistry
from tests.support.images import BIG
from tests.support.mirror_process import MirrorProcess, holder_of_lock, write_config
from tests.support.process import eventually
from tests.support.pulls import expect_each_once, wanted_blobs
from tests.support.registry_process import RegistryProcess
from tests.support.skopeo import Skopeo, compare_directory

_MIB: Final = 1 << 20
_LAYER: Final = 64 * _MIB
_GATE: Final = 24 * _MIB
#: Each request is for all that is missing, so that what is asked for after a fault says what was here.
_ONE: Final = "connections_per_blob = 1"


@pytest.fixture
def layer(directory: Path) -> Path:
    """A file of the bytes that the gated registry serves."""
    file, noise = directory / "layer", Random("gated")
    with file.open("wb") as opened:
        for _ in range(_LAYER // _MIB):
            opened.write(noise.randbytes(_MIB))
    return file


@pytest.fixture
def upstream(layer: Path) -> Iterator[GatedRegistry]:
    with GatedRegistry(layer.read_bytes(), gate=_GATE) as registry:
        yield registry


def _learn_image(mirror: MirrorProcess, repository: str) -> None:
    """The manifest first, as every client does."""
    status, _, body = mirror.get(
        f"/v2/{repository}/manifests/v1", {"Accept": "application/vnd.oci.image.manifest.v1+json"}
    )
    assert status == 200, body


def _ingest(directory: Path, digest: str) -> Path:
    """The file that grows while the blob arrives; its filler holds the lock on it."""
    return Layout(directory / "store").ingest(Digest.parse(digest), "docker.io")


def _join_until_two_workers_follow(mirror: MirrorProcess, crowd: Crowd) -> dict[Client, int]:
    """Clients and their workers. The kernel chooses who accepts, so more come until not all are with one."""
    workers: dict[Client, int] = {}
    for _ in range(20):
        joined = crowd.join(12)
        workers |= zip(joined, mirror.workers_of([client.connection for client in joined]), strict=True)
        if len(set(workers.values())) > 1:
            return workers
    raise AssertionError(f"{len(workers)} connections, all accepted by one of the workers {mirror.worker_pids()}")


def _expect_all_right(clients: list[Client], size: int) -> None:
    wrong = [
        client
        for client in clients
        if (client.outcome, client.status, client.received, client.wrong_at) != (Outcome.COMPLETE, 200, size, None)
    ]
    assert not wrong, f"{len(wrong)} of {len(clients)}: {wrong[:5]}"


def test_two_hundred_clients_on_one_cold_blob_cost_one_download(library: Library, directory: Path) -> None:
    """200 clients over 4 workers: upstream sends each byte once, and every byte of all 200 answers is right."""
    image = library.images["big"]
    digest = image.native.layers[0].digest
    encoded = digest.partition(":")[2]
    blob = library.docker_root / f"data/docker/registry/v2/blobs/sha256/{encoded[:2]}/{encoded}/data"
    with (
        RegistryProcess(library.docker_root, read_only=True) as registry,
        MirrorProcess(write_config(directory, {"docker.io": registry.url}, workers=4)) as mirror,
        Crowd(mirror.port, f"/v2/{image.repository}/blobs/{digest}", blob) as crowd,
    ):
        assert crowd.digest() == digest
        assert crowd.size >= BIG
        assert len(mirror.wait_for_workers(4)) == 4
        _learn_image(mirror, image.repository)
        crowd.join(200)
        # else nothing is said about workers that share a download
        assert len(set(mirror.workers_of([client.connection for client in crowd.clients]))) > 1
        crowd.finish()
        _expect_all_right(crowd.clients, crowd.size)
        # a large blob is asked for in parts, each byte once
        assert registry.sent()[digest] == crowd.size
        asked = [request for request in registry.requests() if request.path.endswith(digest)]
        assert {request.method for request in asked} == {"GET"}
        assert len(asked) <= 20


def test_real_clients_at_once_share_every_download(library: Library, directory: Path) -> None:
    """Six copies of one cold image of forty layers at once: upstream sends each of its blobs once."""
    image = library.images["many"]
    with (
        RegistryProcess(library.docker_root, read_only=True) as registry,
        MirrorProcess(write_config(directory, {"docker.io": registry.url}, workers=4)) as mirror,
        ThreadPoolExecutor(6) as pool,
    ):
        skopeo = Skopeo(directory, mirror.address)
        targets = [directory / f"copy-{n}" for n in range(6)]
        for copied in [pool.submit(skopeo.copy, image.name, target) for target in targets]:
            copied.result()
        for target in targets:
            compare_directory(target, image, every_platform=True)
        expect_each_once(registry.sent(), wanted_blobs(image))
        asked = registry.requests()
        assert len([request for request in asked if request.is_manifest and request.method == "GET"]) == 1


def test_followers_outlive_the_filling_worker(upstream: GatedRegistry, layer: Path, directory: Path) -> None:
    """`kill -9` of the filler in mid-blob: other workers' clients get every byte, by a Range from where it stopped."""
    config = write_config(directory, {"docker.io": upstream.url}, workers=4, upstream=_ONE)
    target = f"/v2/{upstream.repository}/blobs/{upstream.digest}"
    with MirrorProcess(config) as mirror, Crowd(mirror.port, target, layer) as crowd:
        mirror.wait_for_workers(4)
        _learn_image(mirror, upstream.repository)
        workers = _join_until_two_workers_follow(mirror, crowd)
        upstream.wait_at_gate()
        crowd.run(lambda: all(client.received >= _MIB for client in crowd.clients), "bytes flow to every client")

        ingest = _ingest(directory, upstream.digest)
        filler = eventually(lambda: holder_of_lock(ingest, mirror.worker_pids()), "a worker holds the ingest's lock")
        mirror.kill_worker(filler)
        upstream.wait_for_requests(2)
        upstream.open_gate()
        crowd.finish()

        _expect_all_right([client for client in crowd.clients if workers[client] != filler], _LAYER)
        for client in crowd.clients:
            # what its own worker's death costs a client is a broken connection, never a wrong or a short blob
            assert client.wrong_at is None
            assert client.outcome is Outcome.BROKEN or client.received == _LAYER
        whole, resumed = upstream.blob_requests
        assert whole == BlobRequest("GET", None)
        assert resumed.method == "GET"
        assert resumed.start is not None
        assert 0 < resumed.start <= _GATE

        again = crowd.join(4)
        crowd.finish()
        _expect_all_right(again, _LAYER)
        assert len(upstream.blob_requests) == 2
        assert filler not in mirror.wait_for_workers(4)


def test_a_partial_outlives_the_whole_mirror(upstream: GatedRegistry, layer: Path, directory: Path) -> None:
    """After `kill -9` of every process in mid-blob, the next mirror on the store goes on from the partial."""
    config = write_config(directory, {"docker.io": upstream.url}, upstream=_ONE)
    target = f"/v2/{upstream.repository}/blobs/{upstream.digest}"
    with MirrorProcess(config) as mirror, Crowd(mirror.port, target, layer) as crowd:
        _learn_image(mirror, upstream.repository)
        crowd.join(1)
        upstream.wait_at_gate()
        crowd.run(lambda: crowd.clients[0].received >= _MIB, "bytes flow")
        mirror.kill()
        crowd.finish()
        assert (crowd.clients[0].outcome, crowd.clients[0].wrong_at) == (Outcome.BROKEN, None)
    upstream.open_gate()
    with MirrorProcess(config) as mirror, Crowd(mirror.port, target, layer) as crowd:
        crowd.join(2)
        crowd.finish()
        _expect_all_right(crowd.clients, _LAYER)
    whole, resumed = upstream.blob_requests
    assert whole == BlobRequest("GET", None)
    assert resumed.start is not None
    assert 0 < resumed.start <= _GATE


def test_a_mirror_that_is_told_to_stop_finishes_its_answers(
    upstream: GatedRegistry, layer: Path, directory: Path
) -> None:
    """SIGTERM in mid-blob: the answers that have begun end complete, and the exit code is 0."""
    config = write_config(directory, {"docker.io": upstream.url}, upstream=_ONE)
    target = f"/v2/{upstream.repository}/blobs/{upstream.digest}"
    with MirrorProcess(config) as mirror, Crowd(mirror.port, target, layer) as crowd:
        _learn_image(mirror, upstream.repository)
        crowd.join(4)
        upstream.wait_at_gate()
        crowd.run(lambda: all(client.received >= _MIB for client in crowd.clients), "bytes flow to every client")
        workers = mirror.worker_pids()
        mirror.begin_stop()
        for pid in workers:
            mirror.wait_for_event("draining", worker=pid)
        upstream.open_gate()
        crowd.finish()
        _expect_all_right(crowd.clients, _LAYER)
        assert mirror.wait() == 0
