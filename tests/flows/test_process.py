"""The mirror as a process: its pages, its workers, its listeners, and how it ends."""

from __future__ import annotations

import http.client
import json
import os
import re
import resource
import socket
import stat
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import pytest

from mirror.config import load
from mirror.errors import ConfigError
from mirror.oci.digest import Digest
from mirror.process import supervisor
from mirror.store.local.layout import Layout
from tests.support.certificates import Certificate
from tests.support.fake_registry import FakeRegistry, stall
from tests.support.live_mirror import LiveMirror, noise
from tests.support.mirror_process import MirrorProcess, write_config
from tests.support.process import PATIENCE, CommandFailed, eventually, run
from tests.support.scripted import Stall

_LAYER = noise(1 << 20)
_SIZE = len(_LAYER)
_real_memory = supervisor._MEMORY
_DIGEST = Digest.of(_LAYER)
_AT = f"/v2/library/app/blobs/{_DIGEST}"
_TAG = "/v2/library/app/manifests/v1"


@pytest.fixture
def full(registry: FakeRegistry) -> FakeRegistry:
    """The upstream with one image."""
    registry.add_image("library/app", "v1", [_LAYER])
    return registry


@pytest.fixture
def config(full: FakeRegistry, tmp_path: Path) -> Path:
    """One worker."""
    return write_config(tmp_path, {"docker.io": full.url}, workers=1)


class _Download:
    """A GET in a thread of its own."""

    def __init__(self, port: int, target: str) -> None:
        self.started = threading.Event()
        self._pool = ThreadPoolExecutor(1)
        self._result = self._pool.submit(self._get, port, target)

    def _get(self, port: int, target: str) -> tuple[int, bytes]:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)) as connection:
            connection.request("GET", target)
            answer = connection.getresponse()
            received = answer.read(1)
            self.started.set()
            return answer.status, received + answer.read()

    def result(self) -> tuple[int, bytes]:
        """Status and body. Raises `http.client.IncompleteRead`, `ConnectionError` where it breaks."""
        try:
            return self._result.result(PATIENCE)
        finally:
            self._pool.shutdown()


# --------------------------------------------------------------------------------------------------- pages


async def test_69_health(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Row 69: alive and ready although upstream is down: the cache still serves. Not ready while draining, but alive,
    and what is asked then is still answered.
    """
    registry.stop()
    for page in ("/livez", "/readyz"):
        for method in ("GET", "HEAD"):
            assert (await mirror.ask(page, method=method)).status == 200
    mirror.app.readiness.drain()
    async with mirror.open("/readyz") as response:
        assert response.status == 503
    assert (await mirror.ask("/livez")).status == 200
    assert (await mirror.ask("/v2/")).status == 200


@pytest.mark.parametrize("page", ["/livez", "/readyz", "/metrics"])
async def test_pages_for_probes(mirror: LiveMirror, page: str) -> None:
    """Probes and scrapers may add a query; no page tells which versions serve it."""
    for target in (page, f"{page}?verbose=1"):
        answer = await mirror.ask(target)
        assert answer.status == 200
        assert answer.headers["Server"] == "mirror"


async def test_metrics(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Prometheus text with what was counted."""
    registry.add_image("library/app", "v1", [_LAYER])
    await mirror.ask(_TAG)
    answer = await mirror.ask("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    names = set(re.findall(r"^(\w+)(?:\{| )", answer.body.decode(), re.MULTILINE))
    assert {"mirror_requests_total", "mirror_upstream_requests_total", "mirror_store_bytes"} <= names


async def test_81_labels_are_bounded(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Row 81: what clients make up (names, tags, hosts, methods) is no label of any metric."""
    for number in range(20):
        await mirror.ask(f"/v2/made-up-{number}/manifests/made-up-{number}")
        await mirror.ask(f"/v2/a/tags/list?ns=made-up-{number}.example")
        await mirror.ask("/v2/", method=f"MADEUP{number}")
    text = (await mirror.ask("/metrics")).body.decode()
    assert "made-up" not in text
    assert "MADEUP" not in text


def test_metrics_of_several_workers(full: FakeRegistry, tmp_path: Path) -> None:
    """Whichever worker is scraped tells the sum of all, exactly; a worker that dies is replaced, and what it counted
    stays.
    """
    config = write_config(tmp_path, {"docker.io": full.url}, workers=3)
    with MirrorProcess(config) as mirror:
        workers = mirror.wait_for_workers(3)
        for _ in range(60):
            assert mirror.get(_TAG)[0] == 200
        # an answer that is given again is counted after it was given
        eventually(lambda: _manifests(mirror) == 60, "each is counted")
        for _ in range(10):
            assert _manifests(mirror) == 60
        mirror.kill_worker(workers[0])
        died = mirror.wait_for_event("worker died")
        assert died["slot"] in (0, 1, 2)
        eventually(lambda: len(now := mirror.worker_pids()) == 3 and workers[0] not in now, "a new worker")
        for _ in range(30):
            assert mirror.get(_TAG)[0] == 200
        eventually(lambda: _manifests(mirror) == 90, "what the killed one counted is kept, and the new one counts")
        assert mirror.stop() == 0
    assert full.count("manifests", "GET") == 1


def _manifests(mirror: MirrorProcess) -> float:
    counted = mirror.metrics()
    return sum(value for name, value in counted.items() if name.startswith("mirror_requests_total{") and "fest" in name)


# ----------------------------------------------------------------------------------------------------- the end


@pytest.mark.parametrize("workers", [1, 2])
def test_65_drain(full: FakeRegistry, tmp_path: Path, workers: int) -> None:
    """Row 65: SIGTERM in the middle of a download: no new connections, but the download comes to its end, then the
    mirror ends with 0. The blob is in the cache.
    """
    gate = Stall()
    full.fail("blobs", stall(gate, after=_SIZE // 2))
    config = write_config(tmp_path, {"docker.io": full.url}, workers=workers)
    with MirrorProcess(config) as mirror:
        download = _Download(mirror.port, _AT)
        assert download.started.wait(PATIENCE)
        mirror.begin_stop()
        mirror.wait_for_event("draining")
        eventually(lambda: _is_refused(mirror.port), "new connections are refused")
        gate.release()
        assert download.result() == (200, _LAYER)
        assert mirror.wait() == 0
        assert not [line for line in mirror.log if line.get("level") == "error" or line["event"] == "raw"]
    file = tmp_path / "store/blobs/sha256" / _DIGEST.hex[:2] / _DIGEST.hex
    assert file.read_bytes() == _LAYER


def _is_refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE).close()
    except OSError:
        return True
    return False


def test_65_drain_is_bounded(full: FakeRegistry, tmp_path: Path) -> None:
    """Row 65: what is not done within `drain_timeout` is broken, never ended as if whole; the partial is kept, and
    the next process goes on with it.
    """
    gate = Stall()
    full.fail("blobs", stall(gate, after=_SIZE // 2))
    config = write_config(tmp_path, {"docker.io": full.url}, workers=1)
    drain = {"MIRROR__SERVER__DRAIN_TIMEOUT": "200ms"}
    with MirrorProcess(config, env=drain) as mirror:
        download = _Download(mirror.port, _AT)
        assert download.started.wait(PATIENCE)
        partial = Layout(tmp_path / "store").ingest(_DIGEST, "docker.io")
        eventually(lambda: partial.stat().st_size == _SIZE // 2, "half of it")
        mirror.begin_stop()
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            download.result()
        assert mirror.wait() == 0
    assert partial.stat().st_size == _SIZE // 2
    gate.release()
    with MirrorProcess(config) as mirror:
        assert mirror.get(_AT)[2] == _LAYER
    assert full.of_kind("blobs")[-1].header("Range") == f"bytes={_SIZE // 2}-"


def test_sigterm_while_idle(config: Path) -> None:
    """With an idle connection open it ends at once: `drain_timeout` is for answers, not for keep-alive."""
    with MirrorProcess(config, env={"MIRROR__SERVER__DRAIN_TIMEOUT": "1h"}) as mirror:
        connection = http.client.HTTPConnection("127.0.0.1", mirror.port, timeout=PATIENCE)
        connection.request("GET", "/v2/")
        connection.getresponse().read()
        assert mirror.stop() == 0
        connection.close()


# --------------------------------------------------------------------------------------------------- listeners


def test_37_descriptors(config: Path) -> None:
    """Row 37: workers take as many descriptors as they may have, whatever soft limit they are started with."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard - 1, hard))
    try:
        with MirrorProcess(config, "--workers", "2") as mirror:
            for pid in mirror.wait_for_workers(2):
                assert resource.prlimit(pid, resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_descriptors_have_room_from_the_start(config: Path) -> None:
    """The kernel need not make its table of descriptors larger while clients wait, which takes 10 to 30 ms."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with MirrorProcess(config, "--workers", "2") as mirror:
        for pid in mirror.wait_for_workers(2):
            size = re.search(r"^FDSize:\s+(\d+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
            assert size is not None
            assert int(size[1]) >= min(16_384, hard)


def test_tls(config: Path, tmp_path: Path) -> None:
    """Over TLS the same bytes, cold, warm and in parts, and the connection serves on."""
    certificate = Certificate(tmp_path)
    tls = {
        "MIRROR__SERVER__TLS_CERTIFICATE": str(certificate.certificate),
        "MIRROR__SERVER__TLS_KEY": str(certificate.key),
    }
    with MirrorProcess(config, env=tls) as mirror:
        connection = http.client.HTTPSConnection(
            "127.0.0.1", mirror.port, timeout=PATIENCE, context=certificate.client()
        )
        with closing(connection):
            for headers, wanted in (
                ({}, _LAYER),
                ({}, _LAYER),
                ({"Range": "bytes=5-9"}, _LAYER[5:10]),
                ({"Range": "bytes=-300000"}, _LAYER[-300_000:]),
            ):
                connection.request("GET", _AT, headers=headers)
                assert connection.getresponse().read() == wanted
            connection.request("HEAD", _AT)
            assert connection.getresponse().headers["Content-Length"] == str(_SIZE)
        with closing(socket.create_connection(("127.0.0.1", mirror.port), timeout=PATIENCE)) as plain:
            plain.sendall(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
            with suppress(ConnectionError):
                assert not plain.recv(100).startswith(b"HTTP/1.1 200"), "no answer without TLS"


def test_unix_listener(config: Path, tmp_path: Path) -> None:
    """Beside a port a unix socket: pulls work on both; what a mirror that was killed has left there is replaced, and
    one that lives is not.
    """
    path = tmp_path / "mirror.sock"
    listen = ("--listen", "127.0.0.1:0", "--listen", f"unix:{path}")
    with MirrorProcess(config, *listen, listeners=2) as mirror:
        assert stat.S_ISSOCK(path.stat().st_mode)
        for _ in range(2):
            assert _by_unix(path, _AT) == _LAYER
        assert mirror.get(_AT)[2] == _LAYER
        assert mirror.wait_for_event("request", client="127.0.0.1")["cache"] == "hit"
        with pytest.raises(CommandFailed, match="in use"):
            _mirror("serve", "--config", str(config), "--listen", f"unix:{path}")
        mirror.kill()
    with MirrorProcess(config, *listen, listeners=2):
        assert _by_unix(path, _AT) == _LAYER


def _by_unix(path: Path, target: str) -> bytes:
    with closing(socket.socket(socket.AF_UNIX)) as connection:
        connection.settimeout(PATIENCE)
        connection.connect(str(path))
        connection.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        received = bytearray()
        while piece := connection.recv(1 << 20):
            received += piece
    head, _, body = bytes(received).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    return body


def test_port_in_use(config: Path) -> None:
    """Another mirror on the same port is refused, with several workers as well, by one line that says where; and not
    with the exit status of a bad configuration, after which systemd does not try again.
    """
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for workers in ("1", "2"):
            with pytest.raises(CommandFailed, match=rf"exit code 1\nmirror: server.listen: {address}: .*in use"):
                _mirror("serve", "--config", str(config), "--listen", address, "--workers", workers)


def test_34_metrics_need_no_disk(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 34: a worker that writes to a mapped file on a full disk is killed by the kernel (SIGBUS). What the workers
    count is therefore in memory; what a killed mirror has left there goes, what a living one has stays.
    """
    memory = tmp_path / "memory"
    memory.mkdir()
    monkeypatch.setattr(supervisor, "_MEMORY", str(memory))
    monkeypatch.delenv("TMPDIR", raising=False)
    (memory / "foreign").mkdir()
    (memory / "mirror-metrics-left").mkdir()
    with supervisor._metrics_folder() as one, supervisor._metrics_folder() as two:
        assert {Path(one).parent, Path(two).parent} == {memory}
        assert {entry.name for entry in memory.iterdir()} == {"foreign", Path(one).name, Path(two).name}
    assert [entry.name for entry in memory.iterdir()] == ["foreign"]
    assert os.access(_real_memory, os.W_OK)


def test_access_log_can_be_turned_off(config: Path) -> None:
    """`server.access_log = false`; the environment goes before the file."""
    with MirrorProcess(config, env={"MIRROR__SERVER__ACCESS_LOG": "false"}) as mirror:
        assert mirror.get(_TAG)[0] == 200
        assert mirror.stop() == 0
        assert not mirror.requests()


# ----------------------------------------------------------------------------------------------------- command


def _mirror(*arguments: str) -> str:
    return run([sys.executable, "-m", "mirror", *arguments]).decode()


def test_check(config: Path) -> None:
    """`mirror check` says that a good configuration is good."""
    assert "good: 1 upstream," in _mirror("check", "--config", str(config))


def test_check_names_every_mistake(tmp_path: Path) -> None:
    """All mistakes at once, one line each, exit status 2, and no secret among them."""
    file = tmp_path / "bad.toml"
    file.write_text(
        """
        default_registry = "nowhere.example"
        unknown = 1
        [server]
        listen = ["nonsense"]
        drain_timeout = "soon"
        [store]
        capacity = "lots"
        low_water = 0.99
        [index]
        url = "http://user:canary-secret@redis/"
        [[upstream]]
        name = "docker.io"
        url = "https://user:canary-secret@registry.example"
        [[upstream]]
        name = "ghcr.io"
        username = "user"
        """
    )
    with pytest.raises(CommandFailed) as caught:
        _mirror("check", "--config", str(file))
    text = str(caught.value)
    assert "exit code 2" in text
    for setting in (
        "unknown: no such setting",
        "server.listen[1]: ",
        "server.drain_timeout: ",
        "store.capacity: ",
        "upstream[1].url: ",
        "upstream[2]: ",
    ):
        assert f"mirror: {setting}" in text, text
    assert "canary-secret" not in text
    assert "Traceback" not in text


def test_check_looks_at_what_settings_cannot_tell_alone(tmp_path: Path) -> None:
    """Names given twice, files that are not there, a default that is no upstream, a URL of another database."""
    secret = tmp_path / "password"
    secret.write_text("canary-secret\n")
    file = tmp_path / "bad.toml"
    file.write_text(
        f"""
        default_registry = "nowhere.example"
        [server]
        tls_certificate = "{tmp_path}/none.pem"
        tls_key = "{tmp_path}/none.key"
        [index]
        url = "http://user:canary-secret@redis/"
        [[upstream]]
        name = "docker.io"
        username = "user"
        password_file = "{secret}"
        [[upstream]]
        name = "ghcr.io"
        aliases = ["docker.io"]
        ca_file = "{tmp_path}/none.pem"
        [[upstream]]
        name = "quay.io"
        username = "user"
        password_file = "{tmp_path}/none"
        """
    )
    with pytest.raises(CommandFailed) as caught:
        _mirror("check", "--config", str(file))
    text = str(caught.value)
    assert "exit code 2" in text
    for setting in (
        "default_registry: nowhere.example",
        "server.tls_certificate: ",
        "server.tls_key: ",
        "index.url: ",
        "upstream[2]: docker.io is already the name of upstream[1]",
        "upstream[2].ca_file: ",
        "upstream[3].password_file: ",
    ):
        assert f"mirror: {setting}" in text, text
    assert "canary-secret" not in text


@pytest.mark.parametrize("content", [None, "a = [", b"\xff\xfe"], ids=["missing", "toml", "bytes"])
def test_check_of_what_cannot_be_read(tmp_path: Path, content: str | bytes | None) -> None:
    """A file that is not there, or no TOML: one line, exit status 2."""
    file = tmp_path / "bad.toml"
    if content is not None:
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(CommandFailed, match=rf"exit code 2\nmirror: {re.escape(str(file))}: ") as caught:
        _mirror("check", "--config", str(file))
    assert "Traceback" not in str(caught.value)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Free of settings."""
    for name in os.environ:
        if name.upper().startswith("MIRROR__"):
            monkeypatch.delenv(name)
    return monkeypatch


def test_environment(config: Path, tmp_path: Path, environment: pytest.MonkeyPatch) -> None:
    """An environment variable goes before the file, an option of the command line before both; a mistake in one is
    named like those of the file.
    """
    environment.setenv("MIRROR__STORE__CAPACITY", "5GB")
    environment.setenv("MIRROR__SERVER__WORKERS", "7")
    environment.setenv("MIRROR__INDEX__URL", "redis://:canary-secret@localhost")
    loaded = load(config, {"server": {"workers": 3}})
    assert loaded.store.capacity == "5GB"
    assert loaded.store.root == tmp_path / "store"
    assert loaded.server.workers == 3
    assert "canary-secret" not in repr(loaded)
    environment.setenv("MIRROR__STORE__CAPACITY", "lots")
    environment.setenv("MIRROR__SERVER__WORKERS", "none")
    with pytest.raises(ConfigError) as caught:
        load(config)
    assert [mistake.partition(":")[0] for mistake in caught.value.mistakes] == ["server.workers", "store.capacity"]


def test_defaults(environment: pytest.MonkeyPatch) -> None:
    """With neither file nor environment the public registries are served."""
    loaded = load(None)
    assert loaded.default_registry == "docker.io"
    assert {"docker.io", "ghcr.io", "quay.io", "registry.k8s.io", "gcr.io", "*.gcr.io", "*.pkg.dev"} | {
        "public.ecr.aws",
        "mcr.microsoft.com",
    } == {upstream.name for upstream in loaded.upstream}


def test_evict(config: Path, full: FakeRegistry, tmp_path: Path) -> None:
    """`mirror evict --dry-run` lists what would go and why, and drops nothing; without it, that goes. Afterwards the
    mirror fetches again.
    """
    with MirrorProcess(config) as mirror:
        mirror.get(_TAG)
        assert mirror.get(_AT)[2] == _LAYER
    file = tmp_path / "store/blobs/sha256" / _DIGEST.hex[:2] / _DIGEST.hex
    small = tmp_path / "small.toml"
    small.write_text(config.read_text().replace('"10GB"', '"500KB"'))
    listed = _mirror("evict", "--dry-run", "--config", str(small))
    assert str(_DIGEST) in listed
    assert "least recently used" in listed
    assert "would be evicted" in listed
    assert file.exists()
    assert str(_DIGEST) in _mirror("evict", "--config", str(small))
    assert not file.exists()
    with MirrorProcess(config) as mirror:
        assert mirror.get(_AT)[2] == _LAYER


def test_log_is_one_json_object_a_line(config: Path) -> None:
    """From the first line to the last, each with time, level and event."""
    with MirrorProcess(config) as mirror:
        mirror.get(_TAG)
        assert mirror.stop() == 0
        assert mirror.log
        for line in mirror.log:
            assert line.keys() >= {"time", "level", "event"}, json.dumps(line)
