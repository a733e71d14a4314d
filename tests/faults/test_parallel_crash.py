"""A worker that fills a blob over several connections is killed: another one goes on with all that is here."""

from __future__ import annotations

import random
import threading
from http.client import HTTPException
from pathlib import Path

from mirror.oci.digest import Digest
from mirror.store.local.blobs import LocalStore
from mirror.store.local.layout import Layout
from tests.support.fake_registry import FakeRegistry, stall
from tests.support.mirror_process import MirrorProcess, holder_of_lock, write_config
from tests.support.out_of_turn import bytes_out_of_turn
from tests.support.process import PATIENCE, eventually
from tests.support.scripted import Request, Stall

_MIB = 1 << 20
_SIZE = 48 * _MIB
_NAME = "library/app"
#: Bytes that each connection brings before it stands still.
_BROUGHT = 2 * _MIB


def _length(request: Request) -> int:
    first, _, last = (request.header("Range") or "bytes=0-").removeprefix("bytes=").partition("-")
    return (int(last) + 1 if last else _SIZE) - int(first)


def test_58_the_filler_is_killed_with_several_connections_open(tmp_path: Path) -> None:
    """Rows 41, 53 and 58: the prefix and what came out of turn are used, and only the rest is asked for."""
    layer = random.Random(58).randbytes(_SIZE)
    digest = Digest.of(layer)
    layout = Layout(tmp_path / "store")
    gates = [Stall() for _ in range(4)]
    with FakeRegistry() as registry, MirrorProcess(write_config(tmp_path, {"docker.io": registry.url})) as mirror:
        registry.add_image(_NAME, "v1", [layer])
        assert mirror.get(f"/v2/{_NAME}/manifests/v1")[0] == 200
        for gate in gates:
            registry.fail("blobs", stall(gate, after=_BROUGHT))
        target = f"/v2/{_NAME}/blobs/{digest}"
        answers: list[bytes] = []

        def ask() -> None:
            # whose worker dies, its connection breaks
            try:
                answers.append(mirror.get(target)[2])
            except (OSError, HTTPException):
                answers.append(b"")

        client = threading.Thread(target=ask)
        client.start()
        ingest = layout.ingest(digest, "docker.io")
        store = LocalStore(layout)

        def has_bytes_ahead() -> bool:
            is_ahead = bytes_out_of_turn(store, digest) >= _BROUGHT - 2 * (64 << 10)
            return is_ahead and ingest.stat().st_size >= _BROUGHT - _MIB

        try:
            eventually(has_bytes_ahead, "a further connection brings bytes from ahead")
            filler = eventually(lambda: holder_of_lock(ingest, mirror.worker_pids()), "a worker fills")
            mirror.kill_worker(filler)
        finally:
            for gate in gates:
                gate.release()
        registry.heal()
        before = registry.count("blobs")
        assert mirror.get(target)[2] == layer
        client.join(PATIENCE)
        assert answers in ([layer], [b""])
        asked = registry.of_kind("blobs")[before:]
        assert sum(_length(request) for request in asked if str(digest) in request.target) <= _SIZE - 2 * _MIB
