"""Rows 46 to 52 and 54: whatever happens to Redis, pulls through a whole mirror succeed, and warm pulls do not reach
upstream.
"""

from __future__ import annotations

import http.client
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from mirror.index.redis import Keys
from mirror.oci.digest import Digest
from tests.faults.conftest import Tally
from tests.support.admin_client import ask_admin
from tests.support.fake_registry import FakeRegistry
from tests.support.live_mirror import noise
from tests.support.mirror_process import MirrorProcess, holder_of_lock, write_config
from tests.support.process import PATIENCE, eventually
from tests.support.push_client import image
from tests.support.redis_server import RedisServer

_SECRET = "canary-9f3b"
#: Layers by the name of their image; the one that is warm, and those that are pulled cold one after the other.
_LAYERS = {f"library/app-{number}": noise(60_000, seed=number) for number in range(8)}
_WARM = ["library/app-0", "library/app-1"]
_ROUNDS = 3


@pytest.fixture
def full(registry: FakeRegistry) -> FakeRegistry:
    """Eight images of one layer each."""
    for name, layer in _LAYERS.items():
        registry.add_image(name, "v1", [layer], config=name.encode())
    return registry


class _Pulls:
    """Pulls of whole images, each of which must succeed at the first try; counted."""

    def __init__(self, mirror: MirrorProcess, upstream: FakeRegistry) -> None:
        self._mirror = mirror
        self._upstream = upstream
        self.warm = self.cold = 0
        self._cold = [name for name in _LAYERS if name not in _WARM]
        for name in _WARM:
            self._pull(name)

    def _pull(self, name: str) -> None:
        assert self._mirror.get(f"/v2/{name}/manifests/v1")[0] == 200
        status, _, body = self._mirror.get(f"/v2/{name}/blobs/{Digest.of(_LAYERS[name])}")
        assert (status, body == _LAYERS[name]) == (200, True)

    def again(self) -> None:
        """Warm ones, which ask upstream for nothing, and a cold one, which asks for each thing once."""
        before = self._upstream.count("blobs", "GET")
        for _ in range(_ROUNDS):
            for name in _WARM:
                self._pull(name)
                self.warm += 1
        assert self._upstream.count("blobs", "GET") == before, "a warm pull was fetched"
        self._pull(self._cold.pop())
        self.cold += 1
        assert self._upstream.count("blobs", "GET") == before + 1


@contextmanager
def _mirrored(directory: Path, full: FakeRegistry, url: str, **settings: str) -> Iterator[MirrorProcess]:
    config = write_config(directory, {"docker.io": full.url}, index=url, workers=2, **settings)
    with MirrorProcess(config) as mirror:
        yield mirror
        assert not [line for line in mirror.log if line.get("event") in ("request crashed", "eviction crashed")]
        assert all(request["status"] == 200 for request in mirror.requests())


def _down(redis: RedisServer) -> None:
    redis.kill()


def _hung(redis: RedisServer) -> None:
    redis.pause()


def _flushed(redis: RedisServer) -> None:
    assert redis.command("FLUSHALL") == b"+OK\r\n"


def _out_of_memory(redis: RedisServer) -> None:
    assert redis.command("CONFIG", "SET", "maxmemory-policy", "noeviction") == b"+OK\r\n"
    assert redis.command("CONFIG", "SET", "maxmemory", "1mb") == b"+OK\r\n"
    assert redis.command("SET", "x", "y").startswith(b"-OOM")


def _read_only(redis: RedisServer) -> None:
    # of a primary that is not there: it refuses writes, and its data stay
    assert redis.command("REPLICAOF", "127.0.0.1", "1").startswith(b"+OK")
    assert redis.command("SET", "x", "y").startswith(b"-READONLY")


def _loading(redis: RedisServer) -> None:
    fill = "for i = 1, 20000 do redis.call('SET', 'x' .. i, string.rep('x', 1024)) end"
    assert redis.command("CONFIG", "SET", "rdbcompression", "no") == b"+OK\r\n"
    redis.command("EVAL", fill, "0")
    assert redis.command("SAVE") == b"+OK\r\n"
    # 20 MB at 5 ms for each key: longer than the test takes
    redis.restart("--key-load-delay", "5000", "--loading-process-events-interval-bytes", "1024")
    assert redis.command("GET", "x").startswith(b"-LOADING")


def _another_password(redis: RedisServer) -> None:
    assert redis.command("CONFIG", "SET", "requirepass", _SECRET) == b"+OK\r\n"
    with socket.socket(socket.AF_UNIX) as connection:
        # who was let in before stays so until it has to come again
        connection.connect(str(redis.socket))
        connection.sendall(f"AUTH {_SECRET}\r\nCLIENT KILL TYPE normal\r\n".encode())
        replies = connection.makefile("rb")
        assert (replies.readline(), replies.readline()[:1]) == (b"+OK\r\n", b":")


@pytest.mark.parametrize(
    ("becomes", "event"),
    [
        (_down, "index unavailable"),
        (_hung, "index unavailable"),
        (_flushed, "reconcile started"),
        (_out_of_memory, None),
        (_read_only, "index unavailable"),
        (_loading, "index unavailable"),
        (_another_password, "index unavailable"),
    ],
    ids=["47 killed", "48 hung", "49 flushed", "50 out of memory", "51 read-only", "51 loading", "52 password"],
)
def test_46_to_52_what_becomes_of_redis(
    full: FakeRegistry, tmp_path: Path, tally: Tally, becomes: Callable[[RedisServer], None], event: str | None
) -> None:
    """Row 47 to 52: no warm pull fails or asks upstream, no cold one fails; the log says what is wrong, no secret."""
    patience = "100ms" if becomes is _hung else "5s"
    with RedisServer() as redis, _mirrored(tmp_path, full, redis.url, index_timeout=patience) as mirror:
        pulls = _Pulls(mirror, full)
        pulls.again()
        before = len(mirror.log)
        becomes(redis)
        pulls.again()
        if event:
            eventually(lambda: _is_logged(mirror, event, before), f"{event} is logged")
        pulls.again()
        if becomes is _hung:
            redis.resume()
        tally(warm=pulls.warm, cold=pulls.cold, failed=0)
        assert not [line for line in mirror.log if _SECRET in str(line)]


@pytest.mark.parametrize(
    "becomes",
    [_down, _hung, _out_of_memory, _read_only],
    ids=["47 killed", "48 hung", "50 out of memory", "51 read-only"],
)
def test_46_to_52_hosted_content_needs_no_redis(tmp_path: Path, becomes: Callable[[RedisServer], None]) -> None:
    """Row 47 to 51: pushes, pulls, deletions, undeletions and collection go on; quotas are judged without Redis."""
    patience = "100ms" if becomes is _hung else "5s"
    with RedisServer() as redis:
        config = write_config(tmp_path, {}, index=redis.url, index_timeout=patience, more=_HOSTED)
        with MirrorProcess(config) as mirror:
            admin, before = tmp_path / "store" / "admin.sock", noise(60_000, seed=20)
            _push(mirror, "v1", before)
            becomes(redis)
            after = noise(60_000, seed=21)
            _push(mirror, "v2", after, before)
            for blob in (before, after):
                assert mirror.get(f"{_HOSTED_APP}/blobs/{Digest.of(blob)}")[2] == blob
            assert ask_admin(admin, "DELETE", "/admin/v1/hosted/corp/app:v1").status == 200
            assert mirror.get(f"{_HOSTED_APP}/manifests/v1")[0] == 404
            for _ in range(3):
                assert ask_admin(admin, "POST", "/admin/v1/collection").status == 200
            assert ask_admin(admin, "POST", "/admin/v1/deleted/corp/app:v1").status == 200
            for tag in ("v1", "v2"):
                assert mirror.get(f"{_HOSTED_APP}/manifests/{tag}")[0] == 200
            # of the 200 KB, 120 are used
            status, answer = _upload(mirror, noise(100_000, seed=22))
            assert (status, b"quota" in answer) == (403, True)
            if becomes is _hung:
                redis.resume()
            assert not [line for line in mirror.log if line.get("event") == "request crashed"]


_HOSTED_APP = "/v2/corp/app"
_HOSTED = """
[hosting]
grace = "0s"
[[hosted]]
name = "corp"
quota = "200KB"
[[access.rule]]
effect = "allow"
callers = ["*"]
actions = ["pull", "write", "delete"]
"""


def _ask(mirror: MirrorProcess, method: str, target: str, body: bytes = b"", **headers: str) -> tuple[int, bytes, str]:
    """The status, the body and the location of an answer."""
    with closing(http.client.HTTPConnection("127.0.0.1", mirror.port, timeout=PATIENCE)) as connection:
        connection.request(method, target, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers.get("Location", "")


def _upload(mirror: MirrorProcess, blob: bytes) -> tuple[int, bytes]:
    status, answer, _ = _ask(mirror, "POST", f"{_HOSTED_APP}/blobs/uploads/?digest={Digest.of(blob)}", blob)
    return status, answer


def _push(mirror: MirrorProcess, tag: str, *layers: bytes) -> None:
    config = b"{}"
    for blob in (config, *layers):
        assert _ask(mirror, "HEAD", f"{_HOSTED_APP}/blobs/{Digest.of(blob)}")[0] in (200, 404)
        assert _upload(mirror, blob)[0] == 201
    manifest = image(config, *layers)
    kind = {"Content-Type": "application/vnd.oci.image.manifest.v1+json"}
    assert _ask(mirror, "PUT", f"{_HOSTED_APP}/manifests/{tag}", manifest, **kind)[0] == 201


def _is_logged(mirror: MirrorProcess, event: str, before: int) -> bool:
    """Since line `before` of the log; or already before, if a busy machine made Redis slow and it is not back since."""
    events = [line["event"] for line in mirror.log]
    return event in events[before:] or (
        event == "index unavailable" and events.count(event) > events.count("index available")
    )


@pytest.mark.parametrize("wrong", ["absent", "password"])
def test_46_52_redis_is_of_no_use_at_start(full: FakeRegistry, tmp_path: Path, wrong: str) -> None:
    """Row 46, 52: a mirror whose Redis is not there, or does not let it in, starts and serves what is on disk."""
    with RedisServer() as redis:
        with _mirrored(tmp_path, full, redis.url) as mirror:
            _Pulls(mirror, full)
            assert mirror.stop() == 0
        if wrong == "absent":
            url = redis.url
            redis.kill()
        else:
            redis.restart("--requirepass", "another")
            url = f"unix://:{_SECRET}@{redis.socket}"
        full.forget()
        with _mirrored(tmp_path, full, url) as mirror:
            pulls = _Pulls(mirror, full)
            assert full.count("blobs", "GET") == 0
            pulls.again()
            reason = mirror.wait_for_event("index unavailable")["reason"]
            assert ("password" in reason) == (wrong == "password")
            assert not [line for line in mirror.log if _SECRET in str(line)]


def test_a_mirror_that_runs_says_that_its_index_is_in_use(full: FakeRegistry, tmp_path: Path) -> None:
    """From its start, so that no other mirror deletes it; and it deletes that of a disk that is gone."""
    with RedisServer() as redis:
        redis.command("SADD", "{mirror:stores}:ids", "gone")
        redis.command("SET", "{mirror:3:gone}:marker", "whole")
        with _mirrored(tmp_path, full, redis.url):
            eventually(lambda: redis.command("EXISTS", "{mirror:3:gone}:marker") == b":0\r\n", "the index is there")
            eventually(lambda: redis.command("SCARD", "{mirror:stores}:ids") == b":1\r\n", "the store is listed")
            assert b":alive\r\n" in redis.command("KEYS", "{mirror:3:*}:alive")


def test_49_flushed_while_it_evicts(full: FakeRegistry, tmp_path: Path) -> None:
    """Row 49: emptied again and again while images come and go, Redis makes no pull fail, and the store keeps within
    its capacity.
    """
    with RedisServer() as redis, _mirrored(tmp_path, full, redis.url, capacity="250KB") as mirror:
        for number in range(24):
            name = f"library/app-{number % len(_LAYERS)}"
            assert mirror.get(f"/v2/{name}/manifests/v1")[0] == 200
            assert mirror.get(f"/v2/{name}/blobs/{Digest.of(_LAYERS[name])}")[2] == _LAYERS[name]
            redis.command("FLUSHALL")
        assert full.count("blobs", "GET") > len(_LAYERS), "nothing had to go, so nothing was tried"
        eventually(lambda: _held(tmp_path / "store") <= 250_000, "it is within its capacity")


def _held(root: Path) -> int:
    return sum(file.stat().st_size for file in (root / "blobs").glob("*/*/*"))


def test_47_uses_that_a_killed_worker_had_not_written(full: FakeRegistry, tmp_path: Path) -> None:
    """Row 47, 55: a blob that a worker stored while Redis was away, and that it took to its grave, is in the index
    soon after Redis is back: the worker that keeps house compares index and disk then.
    """
    name, layer = next(iter(_LAYERS.items()))
    digest = Digest.of(layer)
    with RedisServer() as redis, _mirrored(tmp_path, full, redis.url, index_timeout="100ms") as mirror:
        mirror.wait_for_event("reconcile ended")
        pids = mirror.wait_for_workers(2)
        housekeeper = eventually(
            lambda: holder_of_lock(tmp_path / "store" / "locks" / "house", pids), "a worker keeps house"
        )
        redis.pause()
        with _connected(mirror, next(pid for pid in pids if pid != housekeeper)) as connection:
            for target in ("manifests/v1", f"blobs/{digest}"):
                connection.request("GET", f"/v2/{name}/{target}")
                answer = connection.getresponse()
                assert answer.status == 200
                answer.read()
        eventually(lambda: _held(tmp_path / "store") > len(layer), "the blob is published")
        eventually(lambda: _count(mirror, "eviction runs without index") >= 2, "both workers know that Redis is away")
        mirror.kill_worker(next(pid for pid in pids if pid != housekeeper))
        redis.resume()
        marker = re.search(r'"id": "(\w+)"', (tmp_path / "store" / "store.json").read_text())
        assert marker
        sizes = dict(zip(Keys.NAMES, Keys(marker[1]).fixed, strict=True))["sizes"]
        eventually(lambda: str(len(layer)).encode() in redis.command("HGET", sizes, str(digest)), "it is known")


def _count(mirror: MirrorProcess, event: str) -> int:
    return sum(line["event"] == event for line in mirror.log)


@contextmanager
def _connected(mirror: MirrorProcess, worker: int) -> Iterator[http.client.HTTPConnection]:
    """A connection that this worker has accepted."""
    while True:
        with closing(http.client.HTTPConnection("127.0.0.1", mirror.port, timeout=PATIENCE)) as connection:
            connection.connect()
            if mirror.workers_of([connection.sock]) == [worker]:
                yield connection
                return
