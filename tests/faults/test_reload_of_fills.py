"""A running mirror gets another configuration while a blob comes over several connections."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from mirror.oci.digest import Digest
from mirror.policy.fills.span_blocks import BLOCK
from mirror.store.local.blobs import LocalStore
from mirror.store.local.layout import Layout
from tests.support.fake_registry import FakeRegistry, stall
from tests.support.live_mirror import noise
from tests.support.mirror_process import MirrorProcess, write_config
from tests.support.out_of_turn import bytes_out_of_turn
from tests.support.process import eventually
from tests.support.scripted import Stall
from tests.support.waiting_client import WaitingClient

_MIB = 1 << 20
_SIZE = 48 * _MIB
_LAYERS = noise(_SIZE, seed=661), noise(_SIZE, seed=662)
_FIRST, _NEXT = (f"/v2/library/app/blobs/{Digest.of(layer)}" for layer in _LAYERS)
#: Bytes that each connection brings before it stands still.
_BROUGHT = 2 * _MIB
#: What comes again of a connection that was cut: less than a block.
_AGAIN = 4 * BLOCK


@pytest.fixture
def gates(registry: FakeRegistry) -> Iterator[Sequence[Stall]]:
    """Where the first connections stand still."""
    registry.add_image("library/app", "v1", list(_LAYERS))
    gates = [Stall() for _ in range(4)]
    yield gates
    for gate in gates:
        gate.release()


def _config(folder: Path, registry: FakeRegistry, *, connections: int, drain: str = "2m") -> Path:
    config = write_config(
        folder,
        {"docker.io": registry.url},
        workers=1,
        upstream=f'connections_per_blob = {connections}\nread_timeout = "2m"',
    )
    config.write_text(config.read_text().replace("workers = 1", f'workers = 1\ndrain_timeout = "{drain}"'))
    return config


def _fill(
    mirror: MirrorProcess, registry: FakeRegistry, folder: Path, gates: Sequence[Stall], stack: ExitStack
) -> WaitingClient:
    """A client of the first blob, once a further connection has brought bytes of it, and all stand still."""
    assert mirror.get("/v2/library/app/manifests/v1")[0] == 200
    for gate in gates:
        registry.fail("blobs", stall(gate, after=_BROUGHT))
    client = stack.enter_context(WaitingClient(mirror, _FIRST))
    store, digest = LocalStore(Layout(folder / "store")), Digest.of(_LAYERS[0])
    ingest = Layout(folder / "store").ingest(digest, "docker.io")
    eventually(
        lambda: bytes_out_of_turn(store, digest) >= _BROUGHT - 2 * BLOCK and ingest.stat().st_size >= _BROUGHT - _MIB,
        "a further connection brings bytes from ahead",
    )
    return client


def _reload(mirror: MirrorProcess) -> int:
    """Another worker takes requests. Returns the one that drains."""
    [old] = mirror.worker_pids()
    os.kill(mirror.pid, signal.SIGHUP)
    mirror.wait_for_event("draining", worker=old)
    return old


def _received(mirror: MirrorProcess, of: str = "mirror_upstream_bytes_total") -> float:
    return mirror.metrics().get(f'{of}{{upstream="docker.io"}}', 0.0)


def _all_published(folder: Path) -> None:
    """Clients have a whole blob once it is verified, before the store has published it: its files stay until then."""
    eventually(lambda: not list((folder / "store" / "ingest").iterdir()), "nothing is left of the fills")


def test_66_a_fill_over_several_connections_outlives_the_reload(
    registry: FakeRegistry, tmp_path: Path, gates: Sequence[Stall]
) -> None:
    """Row 66: the old worker fills on for its client and those of the new one, and each byte comes once; the next blob
    is fetched as the new configuration says.
    """
    with MirrorProcess(_config(tmp_path, registry, connections=4)) as mirror, ExitStack() as stack:
        before = _received(mirror)
        first = _fill(mirror, registry, tmp_path, gates, stack)
        _config(tmp_path, registry, connections=1)
        old = _reload(mirror)
        second = stack.enter_context(WaitingClient(mirror, _FIRST))
        for gate in gates:
            gate.release()
        stack.close()
        assert first.body == second.body == _LAYERS[0]
        mirror.wait_for_event("stopped", worker=old)
        assert _SIZE <= _received(mirror) - before <= _SIZE + _AGAIN
        further = _received(mirror, "mirror_further_connection_bytes_total")
        assert further >= _BROUGHT - 2 * BLOCK
        asked = registry.count("blobs")
        assert mirror.get(_NEXT)[2] == _LAYERS[1]
        assert registry.count("blobs") == asked + 1
        assert _received(mirror, "mirror_further_connection_bytes_total") == further
        _all_published(tmp_path)


def test_66_a_fill_that_the_old_worker_cannot_end_goes_on(
    registry: FakeRegistry, tmp_path: Path, gates: Sequence[Stall]
) -> None:
    """Row 66: at the end of `drain_timeout` its connections are closed, and a client of the new worker gets the rest;
    what has come is not asked for again.
    """
    with MirrorProcess(_config(tmp_path, registry, connections=4, drain="1s")) as mirror, ExitStack() as stack:
        before = _received(mirror)
        first = _fill(mirror, registry, tmp_path, gates, stack)
        old = _reload(mirror)
        second = stack.enter_context(WaitingClient(mirror, _FIRST))
        mirror.wait_for_event("stopped", worker=old)
        for gate in gates:
            gate.release()
        stack.close()
        assert first.body != _LAYERS[0]
        assert second.body == _LAYERS[0]
        assert _SIZE <= _received(mirror) - before <= _SIZE + _AGAIN
        assert mirror.get(_NEXT)[2] == _LAYERS[1]
        _all_published(tmp_path)
