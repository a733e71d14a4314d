"""A disk that is full, or whose files were changed beneath us: pulls go on."""

from __future__ import annotations

import asyncio
import os
import stat
import threading
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest

from mirror import telemetry
from mirror.errors import StoreError
from mirror.eviction.reconcile import reconcile
from mirror.oci.digest import Digest
from tests.support.fake_registry import FakeRegistry, stall, wrong_bytes
from tests.support.live_mirror import PATIENCE, Got, LiveMirror, live_mirror, noise, reached, until
from tests.support.scripted import Close, Script, Stall, chunked, head
from tests.support.tmpfs import tmpfs

_LAYER = noise(1 << 20)
_SIZE = len(_LAYER)
_DIGEST = Digest.of(_LAYER)
_AT = f"/v2/library/app/blobs/{_DIGEST}"
_TAG = "/v2/library/app/manifests/v1"


@pytest.fixture
def image(registry: FakeRegistry) -> Digest:
    """One with that layer."""
    return registry.add_image("library/app", "v1", [_LAYER])


def _is_whole(answer: Got) -> None:
    assert (answer.status, answer.whole, len(answer.body)) == (200, True, _SIZE)


async def _pull(mirror: LiveMirror, *, by_manifest: bool = True) -> None:
    if by_manifest:
        assert (await mirror.ask(_TAG)).status == 200
    _is_whole(await mirror.ask(_AT))
    await mirror.landed(_DIGEST)


def _writable(file: Path) -> Path:
    file.chmod(0o644)
    return file


# ------------------------------------------------------------------------------------------- a busy disk


async def test_other_workers_do_not_wait_for_the_disk(
    registry: FakeRegistry, mirror: LiveMirror, image: Digest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that takes its time to make new names durable keeps nobody waiting: not the worker that asks upstream, and
    not another on the same store, which finds the tag and the manifest there instead of asking upstream as well.
    """
    fsync, done, begun = os.fsync, threading.Event(), threading.Event()

    def slow(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            begun.set()
            assert done.wait(PATIENCE), "the disk was never let go"
        fsync(descriptor)

    async with live_mirror(mirror.root, {"docker.io": registry.url}) as another:
        monkeypatch.setattr(os, "fsync", slow)
        try:
            asked = [asyncio.create_task(mirror.ask(_TAG))]
            assert await asyncio.to_thread(begun.wait, PATIENCE)
            asked.append(asyncio.create_task(another.ask(_TAG)))
            answers = await asyncio.gather(*asked)
        finally:
            done.set()
    assert [answer.status for answer in answers] == [200, 200]
    assert [request.method for request in registry.of_kind("manifests")] == ["HEAD", "GET"]
    assert not [line for line in (*mirror.log, *another.log) if line["event"] == "lock not obtained"]


async def test_readers_do_not_wait_for_writers(
    registry: FakeRegistry, mirror: LiveMirror, image: Digest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many tags a busy disk has to take note of, what is on it already is served meanwhile."""
    await _pull(mirror)
    for number in range(40):
        registry.add_image("library/app", f"t{number}", [b"%d" % number])
    fsync, done = os.fsync, threading.Event()
    syncing = threading.Semaphore(0)

    def slow(descriptor: int) -> None:
        syncing.release()
        assert done.wait(PATIENCE), "the disk was never let go"
        fsync(descriptor)

    async with live_mirror(mirror.root, {"docker.io": registry.url}) as another:
        await another.rebuilt()
        monkeypatch.setattr(os, "fsync", slow)
        tags = [f"/v2/library/app/manifests/t{number}" for number in range(40)]
        asked = [asyncio.create_task(another.ask(tag, method="HEAD")) for tag in tags]
        try:
            assert await asyncio.to_thread(syncing.acquire, timeout=PATIENCE)
            assert (await another.ask(f"/v2/library/app/manifests/{image}")).cache == "hit"
            assert (await another.ask(_TAG)).cache == "hit"
            _is_whole(await another.ask(_AT))
        finally:
            done.set()
        assert {answer.status for answer in await asyncio.gather(*asked)} == {200}


# -------------------------------------------------------------------------------- files changed beneath us


@pytest.mark.parametrize("size", [0, 1, _SIZE - 1, _SIZE + 1])
@pytest.mark.parametrize("source", ["manifest", "length", "chunks"])
@pytest.mark.parametrize("ask", ["GET", "range", "HEAD"])
async def test_39_truncated(
    registry: FakeRegistry, mirror: LiveMirror, image: Digest, size: int, source: str, ask: str
) -> None:
    """Row 39: a file whose size is wrong is set aside and fetched again, however its size was learnt. Never a short or
    an empty 200.
    """
    if source == "chunks":
        body = head(200, {"Transfer-Encoding": "chunked"}) + chunked(_LAYER)
        registry.fail("blobs", lambda request, answer: [body])
    await _pull(mirror, by_manifest=source == "manifest")
    os.truncate(_writable(mirror.blob_file(_DIGEST)), size)
    registry.forget()
    if ask == "HEAD":
        answer = await mirror.ask(_AT, method="HEAD")
        assert (answer.status, answer.headers["Content-Length"]) == (200, str(_SIZE))
    elif ask == "range":
        answer = await mirror.ask(_AT, headers={"Range": "bytes=-10"})
        assert (answer.status, answer.body) == (206, _LAYER[-10:])
    else:
        _is_whole(await mirror.ask(_AT))
        await mirror.landed(_DIGEST)
        assert registry.count("blobs") == 1
        assert mirror.blob_file(_DIGEST).read_bytes() == _LAYER
        assert mirror.events("damaged blob set aside")


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("ask", ["GET", "HEAD"])
async def test_39_truncated_and_the_index_lost(
    registry: FakeRegistry, mirror: LiveMirror, image: Digest, named: bool, ask: str
) -> None:
    """Row 39: neither this process nor the index knows the size. A manifest that another process has fetched says it;
    where there is none, all of the blob is hashed, once.
    """
    await _pull(mirror, by_manifest=False)
    if named:
        async with live_mirror(mirror.root, {"docker.io": registry.url}) as another:
            assert (await another.ask(f"/v2/library/app/manifests/{image}")).status == 200
    else:
        # whole: hashed, and served from here
        await mirror.app.storage.index.clear()
        registry.forget()
        for _ in range(2):
            _is_whole(await mirror.ask(_AT, method="GET"))
        assert registry.count("blobs") == 0
    await mirror.app.storage.index.clear()
    os.truncate(_writable(mirror.blob_file(_DIGEST)), 1000)
    if ask == "HEAD":
        answer = await mirror.ask(_AT, method="HEAD")
        assert (answer.status, answer.headers.get("Content-Length")) == (200, str(_SIZE))
    else:
        _is_whole(await mirror.ask(_AT))
        await mirror.landed(_DIGEST)
        assert mirror.blob_file(_DIGEST).read_bytes() == _LAYER
        assert mirror.events("damaged blob set aside")


@pytest.mark.usefixtures("image")
@pytest.mark.parametrize("ask", ["GET", "HEAD", "fill"])
async def test_39_a_truncated_file_in_the_index(registry: FakeRegistry, tmp_path: Path, ask: str) -> None:
    """Row 39: the index was rebuilt after the file was cut, so that it remembers the wrong size. That is not taken for
    the size of the blob: neither is the cut file served whole, nor is what upstream has refused for its size.
    """
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}) as mirror:
        await _pull(mirror, by_manifest=False)
        os.truncate(_writable(mirror.blob_file(_DIGEST)), 1000)
        await mirror.app.storage.index.clear()
    # without a manifest upstream's word alone gives the right to the blob, and nothing but the file tells a size
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}) as mirror:
        storage = mirror.app.storage
        # the mirror rebuilds the lost index by itself at the same time
        async with storage.locks.hold("rebuild"):
            await reconcile(storage.store, storage.catalog, storage.index)
        known = await storage.index.get(_DIGEST)
        assert known is not None
        assert known.size == 1000
        if ask == "HEAD":
            for _ in range(2):
                answer = await mirror.ask(_AT, method="HEAD")
                assert (answer.status, answer.headers["Content-Length"]) == (200, str(_SIZE))
            return
        if ask == "fill":
            assert (await mirror.ask(_AT, method="HEAD")).status == 200
            mirror.blob_file(_DIGEST).unlink()
        _is_whole(await mirror.ask(_AT))
        await mirror.landed(_DIGEST)
        assert mirror.blob_file(_DIGEST).read_bytes() == _LAYER
        registry.forget()
        _is_whole(await mirror.ask(_AT))
        assert registry.count("blobs") == 0


@pytest.mark.usefixtures("image")
async def test_39_a_size_in_doubt_and_a_disk_that_does_not_tell(
    registry: FakeRegistry, mirror: LiveMirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 39: a blob that cannot be hashed for want of descriptors is not set aside for that. It is not served either:
    what is served comes from upstream.
    """
    await _pull(mirror, by_manifest=False)
    await mirror.app.storage.index.clear()
    # as a process that has not filled it
    mirror.app.shared.integrity._verified.pop(_DIGEST, None)

    def fail(store: object, digest: Digest) -> bool:
        raise StoreError("too many open files")

    registry.forget()
    with monkeypatch.context() as patch:
        patch.setattr("mirror.intake.integrity.is_sound", fail)
        _is_whole(await mirror.ask(_AT))
    assert registry.count("blobs")
    assert mirror.blob_file(_DIGEST).exists()
    assert mirror.events("damaged blob set aside") == []
    registry.forget()
    _is_whole(await mirror.ask(_AT))
    assert registry.count("blobs") == 0


async def test_39_truncated_while_it_is_sent(mirror: LiveMirror, registry: FakeRegistry) -> None:
    """Row 39: the file shrinks while it is sent: the client never takes a wrong or a short body for a whole one."""
    content = noise(24 << 20, seed=1)
    digest = registry.add_blob("library/app", content)
    await mirror.ask(f"/v2/library/app/blobs/{digest}")
    await mirror.landed(digest)
    reader, writer = await mirror.connect()
    writer.write(f"GET /v2/library/app/blobs/{digest} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    received = await reader.readuntil(b"\r\n\r\n")
    assert received.startswith(b"HTTP/1.1 200")
    os.truncate(_writable(mirror.blob_file(digest)), 1000)
    received = b""
    with suppress(ConnectionResetError):
        while piece := await reader.read(1 << 20):
            received += piece
    assert len(received) < len(content) or received == content
    writer.close()
    assert (await mirror.ask(f"/v2/library/app/blobs/{digest}")).body == content


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "delete"])
async def test_39_damaged_manifest(registry: FakeRegistry, tmp_path: Path, image: Digest, damage: str) -> None:
    """Rows 39, 40: a manifest's bytes are hashed when they are read from the disk; wrong ones are fetched again."""
    upstreams = {"docker.io": registry.url}
    async with live_mirror(tmp_path / "again", upstreams) as mirror:
        await _pull(mirror)
        file = _writable(mirror.blob_file(image))
    content = file.read_bytes()
    if damage == "delete":
        file.unlink()
    else:
        file.write_bytes({"truncate": content[:-1], "flip": content.replace(b"2", b"3", 1), "empty": b""}[damage])
    registry.forget()
    async with live_mirror(tmp_path / "again", upstreams) as mirror:
        for reference in (image, "v1"):
            answer = await mirror.ask(f"/v2/library/app/manifests/{reference}")
            assert (answer.status, answer.body) == (200, content)
        assert mirror.blob_file(image).read_bytes() == content
        _is_whole(await mirror.ask(_AT))
    assert registry.count("manifests", "GET") == 1
    assert registry.count("blobs") == 0


async def test_39_damaged_manifest_while_down(registry: FakeRegistry, tmp_path: Path, image: Digest) -> None:
    """Row 39: what is damaged and cannot be fetched is an error, not wrong bytes."""
    upstreams = {"docker.io": registry.url}
    async with live_mirror(tmp_path / "again", upstreams) as mirror:
        await _pull(mirror)
        file = _writable(mirror.blob_file(image))
    file.write_bytes(file.read_bytes()[:-1])
    registry.stop()
    async with live_mirror(tmp_path / "again", upstreams) as mirror:
        answer = await mirror.ask(_TAG)
        assert (answer.status, answer.code) == (503, "UNAVAILABLE")


@pytest.mark.parametrize("by_manifest", [True, False])
async def test_40_deleted(registry: FakeRegistry, mirror: LiveMirror, image: Digest, by_manifest: bool) -> None:
    """Row 40: a file that is gone is a miss, fetched again; a HEAD still knows its size."""
    await _pull(mirror, by_manifest=by_manifest)
    mirror.blob_file(_DIGEST).unlink()
    registry.forget()
    assert (await mirror.ask(_AT, method="HEAD")).headers["Content-Length"] == str(_SIZE)
    _is_whole(await mirror.ask(_AT))
    assert [request.header("Range") for request in registry.of_kind("blobs")] == [None]
    await mirror.landed(_DIGEST)


async def test_40_deleted_while_it_is_sent(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Rows 40, 60: who has begun to read gets every byte, whatever happens to the name."""
    content = noise(24 << 20, seed=1)
    digest = registry.add_blob("library/app", content)
    await mirror.ask(f"/v2/library/app/blobs/{digest}")
    await mirror.landed(digest)
    reader, writer = await mirror.connect()
    writer.write(f"GET /v2/library/app/blobs/{digest} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    mirror.app.storage.store.delete(digest)
    assert await reader.read(-1) == content
    writer.close()


async def test_40_partial_deleted_while_it_grows(registry: FakeRegistry, mirror: LiveMirror, image: Digest) -> None:
    """Row 40: the growing file is removed beneath us: clients get every byte or a broken connection; the next is
    served.
    """
    gate = Stall()
    registry.fail("blobs", stall(gate, after=_SIZE // 2))
    asking = asyncio.create_task(mirror.ask(_AT))
    await reached(gate)
    mirror.app.storage.layout.ingest(_DIGEST, "docker.io").unlink()
    gate.release()
    answer = await asking
    assert not answer.whole or answer.body == _LAYER
    await mirror.idle()
    _is_whole(await mirror.ask(_AT))


async def test_partial_with_other_bytes(registry: FakeRegistry, tmp_path: Path, image: Digest) -> None:
    """What a partial holds is hashed again before it is gone on with: wrong bytes never become part of a blob."""
    upstreams = {"docker.io": registry.url}
    gate = Stall()
    registry.fail("blobs", stall(gate, after=_SIZE // 2))
    async with live_mirror(tmp_path / "again", upstreams) as mirror:
        asking = asyncio.create_task(mirror.ask(_AT))
        await reached(gate)
        [flight] = await until(lambda: mirror.app.shared.flights.active())
        await until(lambda: flight.received == _SIZE // 2)
        partial = mirror.app.storage.layout.ingest(_DIGEST, "docker.io")
    gate.release()
    assert not (await asking).whole
    with partial.open("r+b") as file:
        file.write(bytes(1000))
    async with live_mirror(tmp_path / "again", upstreams) as mirror:
        answer = await mirror.ask(_AT)
        assert not answer.whole or answer.body == _LAYER
        await mirror.idle()
        _is_whole(await mirror.ask(_AT))


async def test_78_symlink_in_the_cache(registry: FakeRegistry, mirror: LiveMirror, image: Digest) -> None:
    """Row 78: a link in a blob's place is not followed, and what it points to not served."""
    secret = mirror.root.parent / "secret"
    secret.write_bytes(b"\0" * _SIZE)
    await _pull(mirror)
    mirror.blob_file(_DIGEST).unlink()
    mirror.blob_file(_DIGEST).symlink_to(secret)
    answer = await mirror.ask(_AT)
    assert answer.body == _LAYER
    assert secret.read_bytes() == b"\0" * _SIZE


# ----------------------------------------------------------------------------------------------- a full disk


async def test_34_blob_larger_than_the_cache(registry: FakeRegistry, tmp_path: Path, image: Digest) -> None:
    """Row 34: a blob that can never fit passes through, verified, and the log says so; small ones are kept, and nobody
    is told that the store is failing.
    """
    store = {"capacity": "100KB"}
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, store=store) as mirror:
        assert (await mirror.ask(_TAG)).status == 200
        await mirror.rebuilt()
        before = sum(count for _, count in telemetry.counted("mirror_upstream_bytes"))
        for _ in range(3):
            answer = await mirror.ask(_AT)
            _is_whole(answer)
            assert answer.cache == "fwd=bypass"
            assert answer.headers["Content-Length"] == str(_SIZE)
        # nothing is saved of what upstream had to send each time
        assert sum(count for _, count in telemetry.counted("mirror_upstream_bytes")) - before >= 3 * _SIZE
        answer = await mirror.ask(_AT, headers={"Range": "bytes=100-199"})
        assert (answer.status, answer.body) == (206, _LAYER[100:200])
        assert {line["blob"] for line in mirror.events("blob larger than store")} == {str(_DIGEST)}
        registry.fail("blobs", wrong_bytes, times=2)
        answer = await mirror.ask(_AT)
        assert not answer.whole or answer.status >= 500
        small = registry.add_blob("library/app", b"small")
        await mirror.ask(f"/v2/library/app/blobs/{small}")
        await mirror.landed(small)
        assert not mirror.events("store failed")


async def test_34_passing_through_without_a_length(registry: FakeRegistry, tmp_path: Path) -> None:
    """Row 34: likewise where upstream does not say the length: in chunks, whole, verified before the end."""
    content = noise(300_000, seed=2)
    digest = registry.add_blob("library/app", content)

    def unsized(body: bytes) -> Script:
        return [head(200, {"Transfer-Encoding": "chunked"}) + chunked(body), Close()]

    store = {"capacity": "100KB"}
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, store=store) as mirror:
        registry.fail("blobs", lambda request, answer: unsized(content), times=9)
        answer = await mirror.ask(f"/v2/library/app/blobs/{digest}")
        assert (answer.status, answer.whole, answer.body) == (200, True, content)
        registry.heal()
        await mirror.idle()
        registry.fail("blobs", lambda request, answer: unsized(content[:-1] + b"?"), times=9)
        answer = await mirror.ask(f"/v2/library/app/blobs/{digest}")
        assert answer.status >= 500 or not answer.whole or answer.cache == "hit"


@pytest.mark.parametrize("limit", ["size=700k", "size=66m", "size=200m,nr_inodes=24"], ids=["none", "little", "inodes"])
async def test_34_disk_full(registry: FakeRegistry, tmp_path: Path, image: Digest, limit: str) -> None:
    """Row 34: no space, little space, or no inodes: every pull succeeds, byte for byte."""
    layers = [noise(400_000, seed=seed) for seed in range(8)]
    registry.add_image("library/app", "v1", layers)
    with tmpfs(tmp_path, limit) as disk:
        async with live_mirror(disk / "store", {"docker.io": registry.url}) as mirror:
            for _ in range(2):
                assert (await mirror.ask(_TAG)).status == 200
                answers = await asyncio.gather(
                    *(mirror.ask(f"/v2/library/app/blobs/{Digest.of(layer)}") for layer in layers)
                )
                for answer, layer in zip(answers, layers, strict=True):
                    assert (answer.status, answer.whole, answer.body) == (200, True, layer)
                await mirror.idle()


async def test_34_disk_fills_up_in_mid_write(registry: FakeRegistry, tmp_path: Path, image: Digest) -> None:
    """Row 34: the disk is filled by others while a blob comes: its clients get the rest from upstream, verified."""
    with tmpfs(tmp_path, "size=80m") as disk:
        async with live_mirror(disk / "store", {"docker.io": registry.url}) as mirror:
            await mirror.ask(_TAG)
            gate = Stall()
            registry.fail("blobs", stall(gate, after=_SIZE // 2))
            asking = [asyncio.create_task(mirror.ask(_AT)) for _ in range(3)]
            await reached(gate)
            await until(lambda: sum(flight.followers for flight in mirror.app.shared.flights.active()) == 3)
            _fill_up(disk / "foreign")
            gate.release()
            for answer in await asyncio.gather(*asking):
                _is_whole(answer)
            await mirror.idle()
            assert not mirror.blob_file(_DIGEST).exists()
            (disk / "foreign").unlink()
            await _pull(mirror)


async def test_34_what_was_sent_before_counts(registry: FakeRegistry, tmp_path: Path, image: Digest) -> None:
    """Rows 4, 34: the store gives up on a download whose first bytes were wrong. What upstream sends then is right,
    but it does not fit to what the clients have: no complete body is made of the two.
    """
    with tmpfs(tmp_path, "size=80m") as disk:
        async with live_mirror(disk / "store", {"docker.io": registry.url}) as mirror:
            await mirror.ask(_TAG)
            gate = Stall()
            registry.fail("blobs", lambda request, answer: [*wrong_start(), gate, _LAYER[_SIZE // 2 :]])
            async with mirror.open(_AT) as response:
                received = await response.content.readexactly(_SIZE // 2)
                _fill_up(disk / "foreign")
                gate.release()
                with pytest.raises(aiohttp.ClientPayloadError):
                    received += await response.content.read()
            assert len(received) < _SIZE


async def test_4_thrown_away_by_another_process(registry: FakeRegistry, tmp_path: Path, image: Digest) -> None:
    """Rows 4, 44: a process follows the download of another, which turns out to be wrong and is thrown away. Its
    clients have bytes of it: their connections break, although upstream would now send the right ones.
    """
    upstreams = {"docker.io": registry.url}
    async with live_mirror(tmp_path / "shared", upstreams) as one, live_mirror(tmp_path / "shared", upstreams) as two:
        assert (await one.ask(_TAG)).status == (await two.ask(_TAG)).status == 200
        gate = Stall()
        registry.fail("blobs", lambda request, answer: [*wrong_start(), gate, _LAYER[_SIZE // 2 :]])
        filling = asyncio.create_task(one.ask(_AT))
        await reached(gate)
        async with two.open(_AT) as response:
            received = await response.content.readexactly(_SIZE // 2)
            gate.release()
            with pytest.raises(aiohttp.ClientPayloadError):
                received += await response.content.read()
        assert len(received) < _SIZE
        assert not (await filling).whole
        await one.idle()
        await two.idle()
        _is_whole(await two.ask(_AT))


def wrong_start() -> Script:
    """The first half of another blob of the same size."""
    return [head(200, {"Content-Length": str(_SIZE)}), b"?" * (_SIZE // 2)]


def _fill_up(file: Path) -> None:
    with file.open("wb", buffering=0) as foreign:
        try:
            while True:
                foreign.write(bytes(4096))
        except OSError:
            pass


async def test_evicted_to_make_room(registry: FakeRegistry, tmp_path: Path) -> None:
    """More is pulled than fits: every pull is right, and the store stays within its capacity."""
    layers = [noise(400_000, seed=seed) for seed in range(12)]
    registry.add_image("library/app", "v1", layers)
    store = {"capacity": "2MB"}
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, store=store) as mirror:
        for _ in range(2):
            assert (await mirror.ask(_TAG)).status == 200
            for layer in layers:
                answer = await mirror.ask(f"/v2/library/app/blobs/{Digest.of(layer)}")
                assert (answer.status, answer.whole, answer.body) == (200, True, layer)
                await mirror.idle()
                kept = [file.stat().st_size for file in (mirror.root / "blobs").rglob("*") if file.is_file()]
                assert sum(kept) <= 2_000_000
        assert not mirror.events("store failed")
