"""Clients push, move tags, delete and pull while collection runs all the time, with a grace time of one second."""

from __future__ import annotations

import hashlib
import http.client
import os
from collections.abc import Callable
from pathlib import Path

from tests.faults.conftest import Tally
from tests.support.images import sha256
from tests.support.live_mirror import noise
from tests.support.mirror_process import MirrorProcess, write_config
from tests.support.process import PATIENCE, eventually
from tests.support.pushers import Pushers, open_to_pushers


def _hosted(root: Path) -> list[str]:
    return [file.name for file in (root / "hosted").glob("*/*/*")]


def test_95_97_a_storm_of_pushes_while_everything_is_collected(
    tmp_path: Path, times: Callable[[str, int], int], tally: Tally
) -> None:
    """Rows 95 to 97: every image whose push was acknowledged can be pulled whole until it is deleted; what the clients
    share is never lost; and in the end nothing is left of what was deleted.
    """
    rounds = times("STORMS", 3)
    seed = int(os.environ.get("MIRROR_FAULTS_SEED", "1"))
    config = write_config(tmp_path, {}, workers=2, more=open_to_pushers())
    root, read = tmp_path / "store", 0
    with MirrorProcess(config) as mirror, Pushers(mirror.port, seed=seed) as pushers:
        for _ in range(rounds):
            pushers.go()
            pushers.wait_for(60)
            pushers.rest()
            read += pushers.look()
            assert pushers.wrong == [], f"seed {seed}"
        pushers.delete_all()
        eventually(lambda: not _hosted(root), "all bytes are collected")
        collected = eventually(lambda: mirror.metrics()["mirror_collected_blobs_total"] or None, "it is counted")
        mirror.expect_clean_log()
    assert read > 0
    assert collected > 0
    tally(changes=pushers.acknowledged.total(), read=read, collected=int(collected))


def test_99_a_blob_is_deleted_and_collected_while_a_client_reads_it(tmp_path: Path) -> None:
    """The answer that is under way ends with the right bytes; the next one is 404."""
    layer = noise(48 << 20, seed=99)
    digest, name = sha256(layer), "/v2/corp/app"
    config = write_config(tmp_path, {}, workers=1, more=open_to_pushers(grace="0s"))
    with MirrorProcess(config) as mirror:
        client = http.client.HTTPConnection("127.0.0.1", mirror.port, timeout=PATIENCE)
        reader = http.client.HTTPConnection("127.0.0.1", mirror.port, timeout=PATIENCE)
        while True:
            assert _status(client, "POST", f"{name}/blobs/uploads/?digest={digest}", layer) == 201
            # without a grace time the link may be gone at once
            reader.request("GET", f"{name}/blobs/{digest}")
            answer = reader.getresponse()
            if answer.status == 200:
                break
            answer.read()
        read = hashlib.sha256(answer.read(1000))
        eventually(lambda: not _hosted(tmp_path / "store"), "the bytes are collected")
        assert _status(client, "GET", f"{name}/blobs/{digest}") == 404
        while piece := answer.read(1 << 20):
            read.update(piece)
        assert f"sha256:{read.hexdigest()}" == digest
        client.close()
        reader.close()


def _status(connection: http.client.HTTPConnection, method: str, target: str, body: bytes = b"") -> int:
    connection.request(method, target, body=body)
    answer = connection.getresponse()
    answer.read()
    return answer.status
