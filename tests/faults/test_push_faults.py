"""Faults of pushes to a whole mirror: what is left, what clients see, and who goes on. Kills and power cuts are in
`test_push_crashes.py`.
"""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import os
import signal
import socket
import time
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Final

import bcrypt
import pytest

from mirror.oci.digest import Digest
from tests.clients.conftest import OPEN_TO_PUSHES
from tests.support.fake_registry import FakeRegistry
from tests.support.images import sha256
from tests.support.live_mirror import LiveMirror, noise, until
from tests.support.mirror_process import MirrorProcess, write_config
from tests.support.process import PATIENCE, eventually
from tests.support.push_client import PushClient, hosting_mirror, index
from tests.support.tmpfs import tmpfs

_MB: Final = 1 << 20


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[PushClient]:
    """Of a mirror that hosts `corp`."""
    async with hosting_mirror(tmp_path) as mirror:
        yield PushClient(mirror)


def _sessions(mirror: LiveMirror) -> list[Path]:
    return list((mirror.root / "uploads").glob("*"))


async def test_83_an_upload_session_waits_and_expires(tmp_path: Path) -> None:
    """Row 83: after a restart of the mirror the session of a client that left is still there. Once no byte has come for
    `upload_timeout`, it is gone with its bytes, and nothing of it was ever visible.
    """
    content = noise(100_000)
    async with hosting_mirror(tmp_path) as mirror:
        client = PushClient(mirror)
        place = await client.begin()
        assert (await client.ask("PATCH", place, body=content[:60_000])).status == 202
    async with hosting_mirror(tmp_path) as mirror:
        client = PushClient(mirror)
        assert (await client.ask("GET", place)).headers["Range"] == "0-59999"
        assert (await client.blob(Digest.of(content))).status == 404
        assert (await client.ask("GET", "/v2/_catalog")).json["repositories"] == []
        [session] = _sessions(mirror)
    long_ago = time.time() - 2 * 86400
    os.utime(session, (long_ago, long_ago))
    async with hosting_mirror(tmp_path) as mirror:
        client = PushClient(mirror)
        await until(lambda: not _sessions(mirror))
        gone = await client.ask("GET", place)
        assert (gone.status, gone.code) == (404, "BLOB_UPLOAD_UNKNOWN")


def test_87_another_worker_goes_on_at_the_same_byte(tmp_path: Path) -> None:
    """Row 87: the worker that took the first bytes of an upload is killed. Another one has all of them, and takes the
    rest.
    """
    content = noise(900_000)
    with MirrorProcess(write_config(tmp_path, {}, more=OPEN_TO_PUSHES)) as mirror:
        first = mirror.wait_for_workers(2)

        def ask(connection: http.client.HTTPConnection, method: str, target: str, body: bytes = b"") -> tuple[int, str]:
            connection.request(method, target, body)
            answer = connection.getresponse()
            answer.read()
            return answer.status, answer.headers.get("Location", "")

        connection = http.client.HTTPConnection("127.0.0.1", mirror.port, timeout=PATIENCE)
        status, place = ask(connection, "POST", "/v2/corp/app/blobs/uploads/")
        assert status == 202
        status, place = ask(connection, "PATCH", place, content[:500_000])
        assert status == 202
        [worker] = mirror.workers_of([connection.sock])
        mirror.kill_worker(worker)
        connection.close()
        assert mirror.get(place)[1]["Range"] == "0-499999"
        connection = http.client.HTTPConnection("127.0.0.1", mirror.port, timeout=PATIENCE)
        digest = sha256(content)
        joint = "&" if "?" in place else "?"
        assert ask(connection, "PUT", f"{place}{joint}digest={digest}", content[500_000:])[0] == 201
        [other] = mirror.workers_of([connection.sock])
        connection.close()
        assert other != worker
        assert worker in first
        assert mirror.get(f"/v2/corp/app/blobs/{digest}")[2] == content


def test_106_a_client_that_has_vanished(tmp_path: Path) -> None:
    """Row 106: its connection stays open, and brings nothing more. Its next request goes on with the upload, long
    before the first one is found too slow.
    """
    content = noise(900_000)
    with MirrorProcess(write_config(tmp_path, {}, more=OPEN_TO_PUSHES)) as mirror:
        mirror.wait_for_workers(2)
        with closing(http.client.HTTPConnection("127.0.0.1", mirror.port, timeout=PATIENCE)) as connection:
            connection.request("POST", "/v2/corp/app/blobs/uploads/")
            place = connection.getresponse().headers["Location"]
        with socket.create_connection(("127.0.0.1", mirror.port)) as vanished:
            head = f"PATCH {place} HTTP/1.1\r\nHost: mirror\r\nContent-Length: {len(content)}\r\n\r\n"
            vanished.sendall(head.encode() + content[:500_000])
            eventually(lambda: mirror.get(place)[1]["Range"] == "0-499999", "what was sent has arrived")
            with closing(http.client.HTTPConnection("127.0.0.1", mirror.port, timeout=PATIENCE)) as connection:
                headers = {"Content-Range": "500000-899999"}
                connection.request("PATCH", place, content[500_000:], headers)
                answer = connection.getresponse()
                answer.read()
                assert answer.status == 202
                connection.request("PUT", f"{place}{'&' if '?' in place else '?'}digest={sha256(content)}")
                assert connection.getresponse().status == 201
            assert not [line for line in mirror.log if "more slowly" in str(line.get("error"))]
        assert mirror.get(f"/v2/corp/app/blobs/{sha256(content)}")[2] == content


_RIGHTS: Final = """
[access]
htpasswd = "{accounts}"
[[hosted]]
name = "corp"
[[access.rule]]
effect = "allow"
callers = ["user:alice"]
actions = [{actions}]
repositories = ["corp/**"]
"""


def test_109_the_right_to_push_is_taken_away(tmp_path: Path) -> None:
    """Row 109: by a reload between two chunks. The next request is refused, and so is the manifest; what was received
    is there once the right is back.
    """
    accounts = tmp_path / "htpasswd"
    accounts.write_bytes(b"alice:" + bcrypt.hashpw(b"secret", bcrypt.gensalt(4)) + b"\n")
    login = {"Authorization": f"Basic {base64.b64encode(b'alice:secret').decode()}"}
    content = noise(200_000)

    def configure(actions: str) -> Path:
        return write_config(tmp_path, {}, more=_RIGHTS.format(accounts=accounts, actions=actions))

    with MirrorProcess(configure('"pull", "push"')) as mirror:

        def ask(method: str, target: str, body: bytes = b"", **headers: str) -> tuple[int, str, str]:
            """The status, the location and the code of an error."""
            with closing(http.client.HTTPConnection("127.0.0.1", mirror.port, timeout=PATIENCE)) as connection:
                connection.request(method, target, body, {**login, **headers})
                answer = connection.getresponse()
                text = answer.read()
                code = json.loads(text)["errors"][0]["code"] if answer.status >= 400 and text else ""
                return answer.status, answer.headers.get("Location", ""), code

        def reload(actions: str) -> None:
            before = set(mirror.worker_pids())
            configure(actions)
            os.kill(mirror.pid, signal.SIGHUP)
            eventually(lambda: not before & set(mirror.worker_pids()), "the workers are new ones")

        status, place, _ = ask("POST", "/v2/corp/app/blobs/uploads/")
        assert status == 202
        assert ask("PATCH", place, content[:100_000])[0] == 202
        reload('"pull"')
        assert ask("PATCH", place, content[100_000:])[::2] == (403, "DENIED")
        complete = f"{place}{'&' if '?' in place else '?'}digest={sha256(content)}"
        assert ask("PUT", complete)[::2] == (403, "DENIED")
        assert ask("PUT", "/v2/corp/app/manifests/v1", b"{}")[::2] == (403, "DENIED")
        assert ask("GET", f"/v2/corp/app/blobs/{sha256(content)}")[0] == 404
        reload('"pull", "push"')
        assert ask("PATCH", place, content[100_000:], **{"Content-Range": "100000-199999"})[0] == 202
        assert ask("PUT", complete)[0] == 201


async def test_88_a_full_disk(registry: FakeRegistry, tmp_path: Path) -> None:
    """Row 88: on a disk that fills up, cached content makes way for pushes. Then a push is refused with 507 and a
    message before its bytes are on the disk, leaves nothing, and all that was acknowledged stays.
    """
    cached = [noise(2 * _MB, seed=number) for number in range(10)]
    registry.add_image("library/app", "v1", cached)
    with tmpfs(tmp_path, "size=120m") as disk:
        async with hosting_mirror(disk, upstreams={"docker.io": registry.url}) as mirror:
            client = PushClient(mirror)
            assert (await mirror.ask("/v2/docker.io/library/app/manifests/v1")).status == 200
            for layer in cached:
                assert (await mirror.ask(f"/v2/docker.io/library/app/blobs/{Digest.of(layer)}")).body == layer
                await mirror.landed(Digest.of(layer))
            here = [layer for layer in cached if mirror.blob_file(Digest.of(layer)).exists()]
            assert here == cached
            pushed: list[bytes] = []
            while True:
                content = noise(8 * _MB, seed=100 + len(pushed))
                answer = await client.finish(await client.begin(), Digest.of(content), content)
                if answer.status != 201:
                    break
                pushed.append(content)
            assert (answer.status, answer.code) == (507, "DENIED")
            assert "no room" in json.loads(answer.body)["errors"][0]["message"]
            assert not [layer for layer in cached if mirror.blob_file(Digest.of(layer)).exists()]
            assert not _sessions(mirror)

            async def pieces() -> AsyncIterator[bytes]:
                for _ in range(130):
                    yield content[:_MB]

            # of an unknown length: ended in the middle
            answer = await client.ask("PATCH", await client.begin(), body=pieces())
            assert (answer.status, answer.code) == (507, "DENIED")
            assert not _sessions(mirror)
            # small ones fit, and all that was acknowledged is there
            await client.push_image("v1", b"small")
            for content in pushed:
                assert (await client.blob(Digest.of(content))).body == content


async def test_94_two_pushers_of_one_blob(client: PushClient) -> None:
    """Row 94: both are answered 201, and there is one file."""
    content = noise(3 * _MB)
    other = PushClient(client.mirror, "corp/other")
    digests = await asyncio.gather(*(one.push_blob(content) for one in (client, other, client)))
    assert set(digests) == {Digest.of(content)}
    assert len(list((client.mirror.root / "hosted").glob("*/*/*"))) == 1
    assert not _sessions(client.mirror)
    for one in (client, other):
        assert (await one.blob(Digest.of(content))).body == content


async def test_98_a_child_of_an_index_is_deleted(client: PushClient) -> None:
    """Row 98: the index stays, and can be pulled with its other children; of the one that is gone it is said so, until
    it is pushed again.
    """
    children = [await client.push_image(f"child-{number}", b"layer %d" % number) for number in range(2)]
    top = index(*children)
    assert (await client.put(top, "v1")).status == 201
    gone, stays = (Digest.of(child) for child in children)
    assert (await client.ask("DELETE", f"/v2/corp/app/manifests/{gone}")).status == 202
    assert (await client.manifest("v1")).body == top
    assert (await client.manifest(stays)).body == children[1]
    missing = await client.manifest(gone)
    assert (missing.status, missing.code) == (404, "MANIFEST_UNKNOWN")
    refused = await client.put(top, "v2")
    assert (refused.status, refused.code) == (404, "MANIFEST_BLOB_UNKNOWN")
    assert str(gone) in refused.body.decode()
    assert (await client.put(children[0], gone)).status == 201
    assert (await client.put(top, "v2")).status == 201


async def test_99_deleted_while_it_is_pulled(tmp_path: Path) -> None:
    """Row 99: an answer that has begun ends byte for byte, though the image is deleted and its file goes meanwhile."""
    content = noise(20 * _MB)
    async with hosting_mirror(tmp_path, hosted={"keep_deleted": 0}, hosting={"grace": 0, "collect_every": 0}) as mirror:
        client = PushClient(mirror)
        manifest = await client.push_image("v1", content)
        digest = Digest.of(content)
        async with mirror.open(f"/v2/corp/app/blobs/{digest}") as response:
            body = bytearray(await response.content.readexactly(_MB))
            assert (await client.ask("DELETE", f"/v2/corp/app/manifests/{Digest.of(manifest)}")).status == 202
            assert (await client.ask("DELETE", f"/v2/corp/app/blobs/{digest}")).status == 202
            file = mirror.root / "hosted" / "sha256" / digest.hex[:2] / digest.hex
            file.unlink()
            assert (await client.blob(digest)).status == 404
            body += await response.content.read()
        assert bytes(body) == content


async def test_100_moved_while_it_is_pulled(client: PushClient) -> None:
    """Row 100: readers of a tag that moves again and again see one of its images whole, with its own headers."""
    images = [await client.make_image(b"layer %d" % number) for number in range(2)]
    for content in images:
        assert (await client.put(content, Digest.of(content))).status == 201
    assert (await client.put(images[0], "v1")).status == 201
    moving = True
    seen: set[bytes] = set()

    async def read() -> None:
        while moving or len(seen) < 2:
            answer = await client.manifest("v1")
            assert answer.status == 200
            assert answer.body in images
            assert answer.headers["Docker-Content-Digest"] == str(Digest.of(answer.body))
            assert int(answer.headers["Content-Length"]) == len(answer.body)
            seen.add(answer.body)

    readers = [asyncio.create_task(read()) for _ in range(4)]
    for number in range(60):
        content = images[(number + 1) % 2]
        assert (await client.put(content, "v1")).status == 201
        # the pusher's own next request sees it
        assert (await client.manifest("v1")).body == content
    moving = False
    await asyncio.gather(*readers)
    assert seen == set(images)


async def test_104_sessions_without_end(tmp_path: Path) -> None:
    """Row 104: a caller who begins sessions and ends none is refused with 429 at some point, and may go on once some
    of them are over.
    """
    async with hosting_mirror(tmp_path, hosting={"max_uploads": 20, "max_uploads_per_caller": 5}) as mirror:
        client = PushClient(mirror)
        places = [await client.begin() for _ in range(5)]
        refused = await client.ask("POST", client.uploads)
        assert (refused.status, refused.code) == (429, "TOOMANYREQUESTS")
        assert len(_sessions(mirror)) == 5
        assert (await client.ask("DELETE", places.pop())).status == 204
        await client.push_blob(b"content")
        # a push in one request needs no session of its own afterwards
        assert len(_sessions(mirror)) == 4
