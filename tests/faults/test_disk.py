"""A disk that refuses: errors are injected into the system calls of a running worker, or the disk is a small one."""

from __future__ import annotations

import http.client
import json
import os
import re
import resource
import socket
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from mirror.app.building import App
from mirror.oci.digest import Digest
from tests.support.fake_registry import FakeRegistry
from tests.support.live_mirror import LiveMirror, live_mirror, noise
from tests.support.mirror_process import MirrorProcess, write_config
from tests.support.process import PATIENCE, ProgramProcess, eventually, run
from tests.support.store_suite import put_aside
from tests.support.tmpfs import read_only, tmpfs

_LAYER = noise(400_000)
_DIGEST = Digest.of(_LAYER)
_AT = f"/v2/library/app/blobs/{_DIGEST}"
_TAG = "/v2/library/app/manifests/v1"


@pytest.fixture
def full(registry: FakeRegistry) -> FakeRegistry:
    """One image."""
    registry.add_image("library/app", "v1", [_LAYER])
    return registry


@contextmanager
def _injected(pid: int, *faults: str, paths: Sequence[Path] = ()) -> Iterator[None]:
    """Calls of a process end with a fault, as `call,call:fault` (strace(1)); with paths only those about them."""
    calls = ",".join(fault.partition(":")[0] for fault in faults)
    words: list[str | Path] = ["strace", "-f", "-p", str(pid), "-o", "/dev/null", "-e", f"trace={calls}"]
    for path in paths:
        words += ["-P", path]
    for fault in faults:
        words += ["-e", f"inject={fault}"]
    with ProgramProcess(words) as tracer:
        eventually(lambda: _is_traced_by(pid, tracer.pid), f"strace holds {pid}: {tracer.tail()}")
        yield


def _is_traced_by(pid: int, tracer: int) -> bool:
    """Every thread of it."""
    try:
        found = [
            re.search(r"TracerPid:\t(\d+)", (task / "status").read_text())
            for task in Path(f"/proc/{pid}/task").iterdir()
        ]
    except (FileNotFoundError, ProcessLookupError):
        return False  # a thread has ended meanwhile; those that are there now are looked at again
    return all(one is not None and int(one[1]) == tracer for one in found)


def _published(root: Path) -> list[Path]:
    return [file for file in (root / "blobs").glob("*/*/*") if file.name == _DIGEST.hex]


def _wait_published(root: Path) -> Path:
    return eventually(lambda: next(iter(_published(root)), None), "the blob is published")


@pytest.mark.parametrize("calls", ["fsync", "rename,renameat,renameat2"])
def test_35_what_cannot_be_synced_or_renamed(full: FakeRegistry, tmp_path: Path, calls: str) -> None:
    """Row 35: the client gets the whole blob, but nothing gets its final name; once the disk is well it is fetched
    again, not synced again and trusted.
    """
    root = tmp_path / "store"
    with MirrorProcess(write_config(tmp_path, {"docker.io": full.url}, workers=1)) as mirror:
        [worker] = mirror.worker_pids()
        assert mirror.get(_TAG)[0] == 200
        with _injected(worker, f"{calls}:error=EIO"):
            status, _, body = mirror.get(_AT)
            assert (status, body) == (200, _LAYER)
            mirror.wait_for_event("blob cannot be published")
            assert not _published(root)
        assert not list((root / "ingest").glob(f"*{_DIGEST.hex}")), "a partial that a failed fsync has seen"
        assert mirror.get(_AT)[2] == _LAYER
        file = _wait_published(root)
        assert file.read_bytes() == _LAYER
    assert full.count("blobs", "GET") == 2


def _pull(mirror: MirrorProcess) -> bytes | None:
    """The blob by a client that takes only what is complete; None: broken off after the headers."""
    try:
        status, _, body = mirror.get(_AT)
    except (OSError, http.client.HTTPException):
        return None
    assert status == 200
    return body


@pytest.mark.parametrize(
    ("faults", "got", "aside"),
    [
        # nothing was sent yet
        (["sendfile,pread64,preadv,preadv2:error=EIO"], _LAYER, True),
        (["open,openat,openat2:error=EIO"], _LAYER, True),
        # a moment's trouble: what was sent is read once more and compared, upstream's bytes go on from there
        (["sendfile:error=EIO:when=2+"], _LAYER, False),
        # what was sent cannot be compared any more, so nothing may follow it
        (["sendfile:error=EIO:when=2+", "pread64:error=EIO"], None, True),
    ],
)
def test_36_a_blob_that_cannot_be_read(
    full: FakeRegistry, tmp_path: Path, faults: list[str], got: bytes | None, aside: bool
) -> None:
    """Row 36: a blob whose bytes the disk does not give comes from upstream, or breaks where that can no longer be; it
    is set aside, and the next client has it fetched again.
    """
    root = tmp_path / "store"
    with MirrorProcess(write_config(tmp_path, {"docker.io": full.url}, workers=1)) as mirror:
        [worker] = mirror.worker_pids()
        assert mirror.get(_TAG)[0] == 200
        assert mirror.get(_AT)[2] == _LAYER
        file = _wait_published(root)
        away = root / "quarantine" / f"sha256-{_DIGEST.hex}"
        with _injected(worker, *faults, paths=[file, away]):
            assert _pull(mirror) == got
            if aside:
                mirror.wait_for_event("damaged blob set aside", digest=str(_DIGEST))
                eventually(away.is_file, "it is set aside")
        full.forget()
        assert mirror.get(_AT)[2] == _LAYER
        assert _wait_published(root).read_bytes() == _LAYER
        assert mirror.get(_AT)[2] == _LAYER
        assert full.count("blobs", "GET") == aside


def test_36_a_manifest_that_cannot_be_read(full: FakeRegistry, tmp_path: Path) -> None:
    """Row 36: a manifest whose bytes the disk does not give is set aside and fetched again, before the headers."""
    root = tmp_path / "store"
    config = write_config(tmp_path, {"docker.io": full.url}, workers=1)
    with MirrorProcess(config) as mirror:
        wanted = mirror.get(_TAG)[2]
        assert mirror.stop() == 0
    digest = Digest.of(wanted)
    file = root / "blobs" / "sha256" / digest.hex[:2] / digest.hex
    full.forget()
    with MirrorProcess(config) as mirror:
        [worker] = mirror.worker_pids()
        with _injected(worker, "pread64,preadv:error=EIO", paths=[file]):
            status, _, body = mirror.get(f"/v2/library/app/manifests/{digest}")
            assert (status, body) == (200, wanted)
            mirror.wait_for_event("damaged blob set aside", digest=str(digest))
        assert (root / "quarantine" / f"sha256-{digest.hex}").is_file()
        assert file.read_bytes() == wanted
    assert full.count("manifests", "GET") == 1


def test_36_pins_that_cannot_be_read(full: FakeRegistry, tmp_path: Path) -> None:
    """Row 36: a disk that does not list the pins keeps everything: nothing is dropped, every pull is whole, and the log
    says why it is not stored. Once it does, room is made again.
    """
    # with three of them the store is above its high water, four are more than it may hold
    layers = [noise(190_000, seed=number) for number in range(8)]
    full.add_image("library/many", "v1", layers)
    root = tmp_path / "store"
    config = write_config(tmp_path, {"docker.io": full.url}, workers=1)

    def pull(mirror: MirrorProcess, layer: bytes) -> None:
        assert mirror.get(f"/v2/library/many/blobs/{Digest.of(layer)}")[2] == layer

    with MirrorProcess(config, env={"MIRROR__STORE__CAPACITY": "1MB"}) as mirror:
        [worker] = mirror.worker_pids()
        (root / "pins").mkdir()
        assert mirror.get(_TAG)[0] == 200
        assert mirror.get(_AT)[2] == _LAYER
        assert mirror.get("/v2/library/many/manifests/v1")[0] == 200
        published = _wait_published(root)
        with _injected(worker, "openat:error=EIO", paths=[root / "pins"]):
            for layer in layers:
                pull(mirror, layer)
                eventually(lambda: mirror.metrics()["mirror_flights"] == 0, "nothing is on its way")
            for event in ("eviction failed", "store failed"):
                assert f"listing {root}/pins: Input/output error" in mirror.wait_for_event(event)["reason"]
            assert len([line for line in mirror.log if line["event"] == "eviction failed"]) == 1
            assert published.exists()
            assert sum(file.stat().st_size > 100_000 for file in (root / "blobs").glob("*/*/*")) == 4
        for layer in layers:
            pull(mirror, layer)
        mirror.wait_for_event("store recovered")
        assert mirror.worker_pids() == [worker]


def _unavailable(status: int, body: bytes) -> bool:
    """A refusal as the specification writes it."""
    return status == 503 and json.loads(body)["errors"][0]["code"] == "UNAVAILABLE"


def _ended(mirror: MirrorProcess) -> bool:
    """A connection that there is no descriptor for: closed at once, not left to wait."""
    with closing(socket.create_connection(("127.0.0.1", mirror.port), timeout=PATIENCE)) as connection:
        try:
            return connection.recv(1) == b""
        except ConnectionError:
            return True


def test_37_out_of_descriptors(full: FakeRegistry, tmp_path: Path) -> None:
    """Row 37: with no descriptor left, connected clients get what memory and open connections have, and else 503; new
    connections are closed at once; with descriptors again everything is served as before, and nothing is corrupt.
    """
    root = tmp_path / "store"
    with FakeRegistry() as other:
        layer = noise(70_000, seed=4)
        other.add_image("team/tool", "v1", [layer])
        cold = "/v2/ghcr.io/team/tool/manifests/v1"
        config = write_config(tmp_path, {"docker.io": full.url, "ghcr.io": other.url}, workers=1)
        with MirrorProcess(config) as mirror, _connection(mirror) as connected:
            [worker] = mirror.worker_pids()
            assert _ask(connected, _TAG)[0] == 200
            assert _ask(connected, _AT) == (200, _LAYER)
            _wait_published(root)
            before = resource.prlimit(worker, resource.RLIMIT_NOFILE)
            # the kernel gives the lowest free number: there is none below the limit. What the worker has open for a
            # moment only, as its rounds do, must not be counted: it would be free again below the limit.
            free = min(_lowest_free(worker) for _ in range(200))
            resource.prlimit(worker, resource.RLIMIT_NOFILE, (free, before[1]))
            for _ in range(20):
                assert _ended(mirror)
                # memory answers for a second; then the disk is looked at, where a tag may have been frozen meanwhile
                status, body = _ask(connected, _TAG)
                assert status == 200 or _unavailable(status, body)
                status, body = _ask(connected, _AT)
                assert body == _LAYER if status == 200 else _unavailable(status, body)
                assert _unavailable(*_ask(connected, cold))
            resource.prlimit(worker, resource.RLIMIT_NOFILE, before)
            assert mirror.get(_AT)[2] == _LAYER
            # an upstream that could not be reached is left alone for some seconds
            eventually(lambda: mirror.get(cold)[0] == 200, "the other upstream is asked again")
            assert mirror.get(f"/v2/ghcr.io/team/tool/blobs/{Digest.of(layer)}")[2] == layer
            assert mirror.worker_pids() == [worker]
    for file in (root / "blobs").glob("*/*/*"):
        assert Digest.parse(f"sha256:{file.name}").matches(file.read_bytes())


def _lowest_free(pid: int) -> int:
    """The descriptor that this process would be given next."""
    taken = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    return next(number for number in range(len(taken) + 1) if number not in taken)


@contextmanager
def _connection(mirror: MirrorProcess) -> Iterator[http.client.HTTPConnection]:
    """A connection that stays open."""
    with closing(http.client.HTTPConnection("127.0.0.1", mirror.port, timeout=PATIENCE)) as connection:
        yield connection


def _ask(connection: http.client.HTTPConnection, target: str) -> tuple[int, bytes]:
    connection.request("GET", target)
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_38_a_read_only_disk(full: FakeRegistry, tmp_path: Path) -> None:
    """Row 38: a mirror on a disk that became read-only serves what is there, and the rest goes through uncached."""
    other = noise(90_000, seed=3)
    full.add_image("library/other", "v1", [other])
    with tmpfs(tmp_path, "size=8g") as disk:
        config = write_config(disk, {"docker.io": full.url}, workers=1)
        with MirrorProcess(config) as mirror:
            assert mirror.get(_TAG)[0] == 200
            assert mirror.get(_AT)[2] == _LAYER
            _wait_published(disk / "store")
        run(["mount", "-o", "remount,ro", disk])
        asked = full.count("blobs", "GET")
        with MirrorProcess(config, env={"TMPDIR": str(tmp_path)}) as mirror:
            for _ in range(2):
                assert mirror.get(_TAG)[0] == 200
                assert mirror.get(_AT)[2] == _LAYER
            assert full.count("blobs", "GET") == asked
            assert mirror.get("/v2/library/other/manifests/v1")[0] == 200
            assert mirror.get(f"/v2/library/other/blobs/{Digest.of(other)}")[2] == other
        run(["mount", "-o", "remount,rw", disk])


def test_38_a_disk_that_turns_read_only(full: FakeRegistry, tmp_path: Path) -> None:
    """Row 38: a disk that turns read-only under a running mirror costs no pull: what is there is served, the rest goes
    through, the log says so; once it is writable again the same worker stores again.
    """
    other = noise(90_000, seed=3)
    full.add_image("library/other", "v1", [other])
    there, cold = f"/v2/library/other/blobs/{Digest.of(other)}", "/v2/library/other/manifests/v1"
    with tmpfs(tmp_path, "size=8g") as disk:
        root = disk / "store"
        config = write_config(disk, {"docker.io": full.url}, workers=1)
        with MirrorProcess(config, env={"TMPDIR": str(tmp_path)}) as mirror:
            [worker] = mirror.worker_pids()
            assert mirror.get(_TAG)[0] == 200
            assert mirror.get(_AT)[2] == _LAYER
            _wait_published(root)
            index = [root / f"index.sqlite{suffix}" for suffix in ("", "-wal", "-shm")]
            # what is opened anew meets a read-only mount; what the index holds open is refused by its descriptors
            with read_only(disk), _injected(worker, "pwrite64,ftruncate,fdatasync,fsync:error=EROFS", paths=index):
                asked = full.count("blobs", "GET")
                for _ in range(3):
                    assert mirror.get(_TAG)[0] == 200
                    assert mirror.get(_AT)[2] == _LAYER
                assert full.count("blobs", "GET") == asked
                for _ in range(2):
                    assert mirror.get(cold)[0] == 200
                    assert mirror.get(there)[2] == other
                assert full.count("blobs", "GET") == asked + 2
                mirror.wait_for_event("store failed")
                eventually(lambda: mirror.metrics()["mirror_uncached_answers_total"] > 0, "it is counted")
            assert mirror.get(there)[2] == other
            mirror.wait_for_event("store recovered")
            eventually(lambda: list((root / "blobs").glob(f"*/*/{Digest.of(other).hex}")), "it is stored")
            asked = full.count("blobs", "GET")
            assert mirror.get(cold)[0] == 200
            assert mirror.get(there)[2] == other
            assert full.count("blobs", "GET") == asked
            assert mirror.worker_pids() == [worker]


@pytest.mark.parametrize("options", ["size=64m,nr_inodes=70", "size=300k"])
async def test_34_no_inodes_or_no_space(full: FakeRegistry, tmp_path: Path, options: str) -> None:
    """Row 34: a disk without inodes or space costs no client its pull; the answers are whole."""
    layers = [noise(20_000, seed=number) for number in range(40)]
    full.add_image("library/many", "v1", layers)
    with tmpfs(tmp_path, options) as disk:
        async with live_mirror(disk / "store", {"docker.io": full.url}) as mirror:
            assert (await mirror.ask("/v2/library/many/manifests/v1")).status == 200
            for layer in layers:
                got = await mirror.ask(f"/v2/library/many/blobs/{Digest.of(layer)}")
                assert (got.status, got.body) == (200, layer)
            assert (await mirror.ask("/v2/library/many/manifests/v1")).status == 200


async def test_34_a_quarantine_that_fills_the_disk(full: FakeRegistry, tmp_path: Path) -> None:
    """Row 34: damaged blobs that were set aside have taken all that the disk has for the mirror: they make way for the
    next download, and nothing good does.
    """
    with tmpfs(tmp_path, "size=74m") as disk:
        async with live_mirror(disk / "store", {"docker.io": full.url}, before=_without_rounds) as mirror:
            first, second = (noise(900_000, seed=number) for number in (1, 2))
            full.add_image("library/kept", "v1", [first])
            full.add_image("library/next", "v1", [second])
            for name, layer in (("kept", first), ("next", second)):
                for number in range(11 if name == "next" else 0):
                    content = noise(900_000, seed=100 + number)
                    mirror.app.storage.store.put(Digest.of(content), content)
                    put_aside(mirror.app.storage.store, Digest.of(content))
                assert (await mirror.ask(f"/v2/library/{name}/manifests/v1")).status == 200
                got = await mirror.ask(f"/v2/library/{name}/blobs/{Digest.of(layer)}")
                assert (got.status, got.body) == (200, layer)
                await mirror.landed(Digest.of(layer))
            assert mirror.blob_file(Digest.of(first)).exists()
            assert list((disk / "store" / "quarantine").iterdir()) == []
            assert not mirror.events("store failed")


def _without_rounds(app: App) -> None:
    """The evictor's rounds would bring the quarantine down to its bound before the download has to."""

    async def nothing() -> None: ...

    app.storage.eviction.rounds.tick = nothing  # type: ignore[method-assign]


async def test_45_foreign_files(full: FakeRegistry, mirror: LiveMirror) -> None:
    """Row 45: lost+found, notes and links of others are neither served, counted nor touched."""
    await mirror.ask(_TAG)
    assert (await mirror.ask(_AT)).body == _LAYER
    await mirror.landed(_DIGEST)
    foreign = [
        mirror.root / "lost+found" / "#12",
        *(mirror.root / "blobs" / name for name in ("README", "sha256/zz/note")),
    ]
    for file in foreign:
        file.parent.mkdir(exist_ok=True)
        file.write_text("mine")
    from mirror.eviction.reconcile import reconcile
    from mirror.store.local.recovery import sweep

    sweep(mirror.app.storage.layout, keep=0, now=lambda: 4e9)
    await reconcile(mirror.app.storage.store, mirror.app.storage.catalog, mirror.app.storage.index)
    assert all(file.read_text() == "mine" for file in foreign)
    assert (await mirror.ask(_AT)).body == _LAYER
    assert {info.digest for info in mirror.app.storage.store.walk()} >= {_DIGEST}
