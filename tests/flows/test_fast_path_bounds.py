"""What the table of ready answers costs: memory, and connections of clients that read nothing."""

from __future__ import annotations

import json
import socket
from pathlib import Path

from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_INDEX, OCI_MANIFEST
from mirror.repository.caches import weight
from tests.support.fake_registry import FakeRegistry
from tests.support.live_mirror import LiveMirror, live_mirror, noise, until
from tests.support.ready_requests import Line, request, watching

_NAME = "/v2/library/app"
#: More than all buffers between the mirror and a client take.
_LAYER = noise(20_000_000)


async def test_a_blob_behind_an_unread_answer(registry: FakeRegistry, tmp_path: Path) -> None:
    """A client that reads nothing is dropped once, and the log says of the blob that it has asked for as well what it
    says of every blob that a client stops reading.
    """
    manifest = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [], "annotations": {"filling": "x" * 14_000}}
    registry.add_manifest("library/app", json.dumps(manifest).encode(), OCI_INDEX, "filled")
    registry.add_image("library/app", "v1", [_LAYER])
    digest = Digest.of(_LAYER)
    asked = request(f"{_NAME}/manifests/filled")
    async with live_mirror(
        tmp_path / "store", {"docker.io": registry.url}, server={"client_stall_timeout": "1s"}
    ) as mirror:
        for target in (f"{_NAME}/manifests/v1", f"{_NAME}/blobs/{digest}"):
            assert (await mirror.ask(target)).status == 200
        await mirror.landed(digest)
        line = await Line.to(mirror.port)
        for _ in range(2):
            await line.ask(asked)
        with watching(mirror) as watch:
            await line.ask(asked)
            assert watch.reset() == 1
            connection = mirror.server.connections[-1]
            assert connection.transport is not None
            connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            line.reader._transport.pause_reading()  # type: ignore[attr-defined]
            mirror.clear_log()
            while not connection.writing_paused:
                line.writer.write(asked)
                await until(watch.reset)
        line.writer.write(request(f"{_NAME}/blobs/{digest}"))
        try:
            await until(lambda: any("/blobs/" in each["path"] for each in mirror.events("request")))
        finally:
            await line.close()
        [blob] = [each for each in mirror.events("request") if "/blobs/" in each["path"]]
        assert blob["error"] == "client: read nothing for too long"
        assert len(await mirror.logged("connections dropped")) == 1


async def test_the_table_weighs_what_it_keeps_alive(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """The answer to HEAD of a manifest is small, but its entry keeps the whole manifest. The table counts that, and
    does not keep the largest ones at all.
    """

    def add(tag: str, count: int) -> None:
        named = [{"mediaType": OCI_MANIFEST, "digest": f"sha256:{number:064x}", "size": 7} for number in range(count)]
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": named}
        registry.add_manifest("library/app", json.dumps(index).encode(), OCI_INDEX, tag)

    add("large", 300)
    add("largest", 6000)
    line, ready = await Line.to(mirror.port), mirror.app.front.ready
    try:
        for tag, entries in (("large", 1), ("largest", 1)):
            await line.ask(request(f"{_NAME}/manifests/{tag}"))
            for _ in range(2):
                await line.ask(request(f"{_NAME}/manifests/{tag}", "HEAD"))
            assert len(ready) == entries
        [here] = ready._listeners.values()
        [kept] = [each for each in mirror.app.shared.caches.manifests.values() if len(each.manifests) == 300]
        assert here.weight > weight(kept)
    finally:
        await line.close()
