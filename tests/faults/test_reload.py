"""A running mirror gets another configuration, or is asked to end, while clients pull from it."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import ssl
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from mirror.oci.digest import Digest
from tests.faults.conftest import Tally
from tests.support.admin_client import ask_admin
from tests.support.certificates import Certificate
from tests.support.engines.ports import free_ports
from tests.support.fake_registry import FakeRegistry, stall
from tests.support.live_mirror import noise
from tests.support.mirror_process import MirrorProcess, write_config
from tests.support.process import PATIENCE, eventually
from tests.support.scripted import Stall
from tests.support.stubborn import Stubborn

_LAYER = noise(1 << 20)
_AT = f"/v2/library/app/blobs/{Digest.of(_LAYER)}"
_TAG = "/v2/library/app/manifests/v1"
_IMAGES = [("library/app", "v1"), ("library/other", "v1")]


@pytest.fixture
def full(registry: FakeRegistry) -> FakeRegistry:
    """Two images."""
    registry.add_image("library/app", "v1", [_LAYER])
    registry.add_image("library/other", "v1", [noise(50_000, seed=1), noise(3, seed=2)])
    return registry


def _hang_up(mirror: MirrorProcess) -> None:
    os.kill(mirror.pid, signal.SIGHUP)


def _count(mirror: MirrorProcess, event: str) -> int:
    return sum(line["event"] == event for line in mirror.log)


def _wait_for_another(mirror: MirrorProcess, event: str, before: int) -> None:
    eventually(lambda: _count(mirror, event) > before, f"{event} once more than {before} times")


def _wait_until_gone(mirror: MirrorProcess, workers: set[int]) -> None:
    eventually(lambda: not workers & set(mirror.worker_pids()), f"none of {workers} serves")


@pytest.mark.parametrize("workers", [1, 2])
def test_66_reloads_while_clients_pull(
    full: FakeRegistry, tmp_path: Path, workers: int, times: Callable[[str, int], int], tally: Tally
) -> None:
    """Row 66: every worker is replaced again and again under clients, of which half keep their connections: no pull
    fails, and no answer breaks off.
    """
    rounds = times("RELOADS", 2)
    config = write_config(tmp_path, {"docker.io": full.url}, workers=workers, tag_ttl="0s")
    with (
        MirrorProcess(config) as mirror,
        Stubborn(mirror.port, _IMAGES, clients=2, tries=3, pause=0.0, seed=1) as fresh,
        Stubborn(mirror.port, _IMAGES, clients=2, tries=3, pause=0.0, keep=True, seed=2) as kept,
    ):
        for number in range(rounds):
            before = set(mirror.worker_pids())
            fresh.wait_for_pulls(2)
            _hang_up(mirror)
            _wait_for_another(mirror, "configuration reloaded", number)
            _wait_until_gone(mirror, before)
            kept.wait_for_pulls(2)
        fresh.leave()
        kept.leave()
        assert len(mirror.wait_for_workers(workers)) == workers
        tally(
            workers=workers,
            reloads=rounds,
            pulls=fresh.pulled + kept.pulled,
            failed=len(fresh.failed + kept.failed),
            broken=fresh.broken + kept.broken,
        )
        assert not [line for line in mirror.log if line.get("level") == "error"]
    assert not fresh.failed + kept.failed
    assert not fresh.corrupt + kept.corrupt
    # on a connection of its own every request is answered; one that is kept may end in the moment it is used again,
    # and the client asks on a new one
    assert fresh.statuses.keys() == {200, 206}
    assert fresh.broken == 0


def test_66_a_download_outlives_the_reload(full: FakeRegistry, tmp_path: Path) -> None:
    """Row 66: what the old worker is sending goes on to its end, while the new one answers; then the old one ends."""
    gate = Stall()
    full.fail("blobs", stall(gate, after=len(_LAYER) // 2))
    config = write_config(tmp_path, {"docker.io": full.url}, workers=1)
    with MirrorProcess(config) as mirror:
        [old] = mirror.worker_pids()
        with closing(http.client.HTTPConnection("127.0.0.1", mirror.port, timeout=PATIENCE)) as connection:
            connection.request("GET", _AT)
            answer = connection.getresponse()
            begun = answer.read(1)
            _hang_up(mirror)
            mirror.wait_for_event("draining", worker=old)
            assert mirror.get(_TAG)[0] == 200
            assert old not in mirror.worker_pids()
            gate.release()
            assert begun + answer.read() == _LAYER
        mirror.wait_for_event("stopped", worker=old)
        assert mirror.get(_AT)[2] == _LAYER
    assert full.count("blobs", "GET") == 1


def test_67_a_bad_configuration_changes_nothing(full: FakeRegistry, tmp_path: Path) -> None:
    """Row 67: every mistake is logged, without secrets, and the workers stay; a worker that dies afterwards is replaced
    by one with the configuration in force, not with the file on disk.
    """
    config = write_config(tmp_path, {"docker.io": full.url}, workers=1)
    good = config.read_text()
    with MirrorProcess(config) as mirror:
        [old] = mirror.worker_pids()
        config.write_text(
            good.replace('"10GB"', '"lots"') + '\n[[upstream]]\nname = "x.example"\nusername = "canary"\n'
        )
        _hang_up(mirror)
        given_up = mirror.wait_for_event("configuration not reloaded")
        mistakes = [line["mistake"] for line in mirror.log if line["event"] == "configuration refused"]
        assert given_up["mistakes"] == len(mistakes) == 2
        assert [mistake.partition(":")[0] for mistake in mistakes] == ["store.capacity", "upstream[2]"]
        assert mirror.worker_pids() == [old]
        mirror.kill_worker(old)
        eventually(lambda: mirror.worker_pids() not in ([old], [mirror.pid]), "another worker")
        assert mirror.get(_TAG)[0] == 200
        # no TOML, and none at all
        for wrong in ("[server", None):
            before = _count(mirror, "configuration not reloaded")
            if wrong is None:
                config.unlink()
            else:
                config.write_text(wrong)
            _hang_up(mirror)
            _wait_for_another(mirror, given_up["event"], before)
            assert mirror.get(_TAG)[0] == 200
        config.write_text(good)
        _hang_up(mirror)
        mirror.wait_for_event("configuration reloaded", workers=1)
        assert mirror.get(_AT)[2] == _LAYER


def test_67_a_worker_that_cannot_start_changes_nothing(full: FakeRegistry, tmp_path: Path) -> None:
    """Row 67: what only shows when a worker starts (here: a store of another kind) leaves the old workers in place."""
    config = write_config(tmp_path, {"docker.io": full.url}, workers=2)
    other = tmp_path / "other"
    other.mkdir()
    (other / "store.json").write_text('{"layout": 99, "id": "x"}')
    with MirrorProcess(config) as mirror:
        before = sorted(mirror.wait_for_workers(2))
        config.write_text(config.read_text().replace(str(tmp_path / "store"), str(other)))
        _hang_up(mirror)
        mirror.wait_for_event("worker ended while starting", code=1)
        mirror.wait_for_event("configuration not reloaded")
        assert sorted(mirror.worker_pids()) == before
        assert mirror.get(_AT)[2] == _LAYER


def test_67_a_good_configuration_takes_effect(full: FakeRegistry, tmp_path: Path) -> None:
    """Row 67: another upstream is in use after SIGHUP; settings that need a restart are logged and change nothing."""
    with FakeRegistry() as second:
        second.add_image("team/tool", "v1", [noise(1000, seed=5)])
        config = write_config(tmp_path, {"docker.io": full.url}, workers=1)
        with MirrorProcess(config) as mirror:
            target = "/v2/ghcr.io/team/tool/manifests/v1"
            assert mirror.get(target)[0] != 200
            [old] = mirror.worker_pids()
            text = config.read_text() + f'\n[[upstream]]\nname = "ghcr.io"\nurl = "{second.url}"\n'
            config.write_text(text.replace("workers = 1", "workers = 3"))
            _hang_up(mirror)
            mirror.wait_for_event("changed setting needs restart", setting="server.workers")
            mirror.wait_for_event("stopped", worker=old)
            assert mirror.get(target)[0] == 200
            assert len(mirror.wait_for_workers(1)) == 1


def test_67_lazy_routes_take_effect_and_end(full: FakeRegistry, tmp_path: Path) -> None:
    """Row 67: `ranges`, `lazy_share` and `lazy_pause` hold for the workers after SIGHUP. What was sent before is
    compared if the route is not a lazy one any more.
    """
    layers = [noise(2_000_000, seed=seed) for seed in (11, 12, 13, 14)]
    full.add_image("library/lazy", "v1", layers)
    config = write_config(tmp_path, {"docker.io": full.url}, workers=1)
    text = config.read_text()
    lazy = 'tag_ttl = "5m"\nranges = "lazy"\nlazy_share = {share}\nlazy_pause = "{pause}"'
    settings = [
        ("verified", text, True),
        ("lazy", text.replace('tag_ttl = "5m"', lazy.format(share="0.0", pause="1d")), False),
        ("lazy", text.replace('tag_ttl = "5m"', lazy.format(share="1.0", pause="0s")), False),
        ("lazy", text.replace('tag_ttl = "5m"', lazy.format(share="0.0", pause="0s")), True),
    ]
    config.write_text(settings[0][1])
    with MirrorProcess(config) as mirror:
        for number, ((ranges, written, comes_whole), layer) in enumerate(zip(settings, layers, strict=True)):
            if number:
                [old] = mirror.worker_pids()
                config.write_text(written)
                _hang_up(mirror)
                mirror.wait_for_event("stopped", worker=old)
            assert mirror.get("/v2/library/lazy/manifests/v1")[0] == 200
            blob = f"/v2/library/lazy/blobs/{Digest.of(layer)}"
            answer, headers, body = mirror.get(blob, {"Range": "bytes=1000000-1000009"})
            assert (answer, body) == (206, layer[1_000_000:1_000_010])
            assert headers["Cache-Status"].endswith("; detail=unverified") is (ranges == "lazy")
            file = tmp_path / "store" / "blobs" / "sha256" / Digest.of(layer).hex[:2] / Digest.of(layer).hex
            if comes_whole:
                eventually(file.exists, "the whole follows")
            else:
                assert not file.exists()


def test_66_certificates_are_renewed(full: FakeRegistry, tmp_path: Path) -> None:
    """Row 66: after SIGHUP new connections see the new certificate; a pair that does not match leaves the old one."""
    first, second = Certificate(tmp_path / "a"), Certificate(tmp_path / "b")
    certificate, key = tmp_path / "live.pem", tmp_path / "live.key"
    certificate.write_bytes(first.certificate.read_bytes())
    key.write_bytes(first.key.read_bytes())
    config = write_config(tmp_path, {"docker.io": full.url}, workers=1)
    tls = {"MIRROR__SERVER__TLS_CERTIFICATE": str(certificate), "MIRROR__SERVER__TLS_KEY": str(key)}

    def shown(port: int) -> str:
        return ssl.get_server_certificate(("127.0.0.1", port), timeout=PATIENCE)

    with MirrorProcess(config, env=tls) as mirror:
        assert shown(mirror.port) == first.certificate.read_text()
        certificate.write_bytes(second.certificate.read_bytes())
        _hang_up(mirror)
        mirror.wait_for_event("configuration not reloaded")
        assert shown(mirror.port) == first.certificate.read_text()
        key.write_bytes(second.key.read_bytes())
        _hang_up(mirror)
        mirror.wait_for_event("configuration reloaded")
        eventually(lambda: shown(mirror.port) == second.certificate.read_text(), "the new certificate")


def test_66_unix_listeners_stay(full: FakeRegistry, tmp_path: Path) -> None:
    """Row 66: a unix socket is still there, and answers, after the worker that listened on it has ended."""
    path = tmp_path / "mirror.sock"
    config = write_config(tmp_path, {"docker.io": full.url}, workers=1)
    with MirrorProcess(config, "--listen", "127.0.0.1:0", "--listen", f"unix:{path}", listeners=2) as mirror:
        [old] = mirror.worker_pids()
        _hang_up(mirror)
        mirror.wait_for_event("stopped", worker=old)
        with closing(socket.socket(socket.AF_UNIX)) as connection:
            connection.settimeout(PATIENCE)
            connection.connect(str(path))
            connection.sendall(b"GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 200")


def test_65_ending_while_clients_pull(
    full: FakeRegistry, tmp_path: Path, times: Callable[[str, int], int], tally: Tally
) -> None:
    """Row 65: SIGTERM again and again under load, each time followed by a new mirror on the same port: clients that
    try again pull everything, no byte is wrong, and every mirror ends with 0.
    """
    rounds = times("STOPS", 2)
    config = write_config(tmp_path, {"docker.io": full.url}, workers=2, tag_ttl="0s")
    # none that the kernel gives to clients: one that connects to it while nobody listens would be connected with itself
    [port] = free_ports(1)
    listen = ("--listen", f"127.0.0.1:{port}")
    with Stubborn(port, _IMAGES, clients=4, tries=2000, pause=0.02, seed=3) as clients:
        for _ in range(rounds):
            with MirrorProcess(config, *listen) as mirror:
                clients.wait_for_pulls(3)
                assert mirror.stop() == 0
        with MirrorProcess(config, *listen):
            clients.wait_for_pulls(3)
            clients.leave()
    tally(stops=rounds, pulls=clients.pulled, failed=len(clients.failed))
    assert not clients.failed
    assert not clients.corrupt


def test_66_the_admin_listeners_show_what_is_in_force(full: FakeRegistry, tmp_path: Path) -> None:
    """Row 66: after SIGHUP the admin API's listeners, which the parent keeps, show the new settings and pin rules and
    admit the callers of the new rules, over the socket and over TCP; a bad configuration changes nothing.
    """

    def text(ttl: str, token: str, pins: str = "") -> str:
        return good.replace('tag_ttl = "5m"', f'tag_ttl = "{ttl}"') + "\n".join(
            [
                '\n[admin]\nlisten = "127.0.0.1:0"',
                f'[[access.token]]\nname = "ops"\ntoken = "{token}"',
                '[[access.rule]]\neffect = "allow"\ncallers = ["token:ops"]\nactions = ["admin"]',
                pins,
                "",
            ]
        )

    def seen(mirror: MirrorProcess) -> tuple[object, list[str], int, int]:
        """Route, pins by rules, and how the two tokens fare over TCP."""
        settings = ask_admin(admin, "GET", "/admin/v1/config").json
        pins = ask_admin(admin, "GET", "/admin/v1/pins").json["pins"]
        addresses = [line["address"] for line in mirror.log if line["event"] == "admin listening"]
        [port] = [int(address.rpartition(":")[2]) for address in addresses if not address.startswith("unix:")]
        first, second = (_status(port, token) for token in ("first-token", "second-token"))
        return settings["route"][0]["tag_ttl"], [one["image"] for one in pins], first, second

    config = write_config(tmp_path, {"docker.io": full.url}, workers=2)
    admin = tmp_path / "store/admin.sock"
    good = config.read_text()
    config.write_text(text("5m", "first-token"))
    with MirrorProcess(config) as mirror:
        assert mirror.get(_TAG)[0] == 200
        assert seen(mirror) == (300.0, [], 200, 401)
        before = set(mirror.wait_for_workers(2))
        rule = '[[pin]]\nmatch = "docker.io/library/app:v*"\nreason = "by rule"'
        config.write_text(text("7m", "second-token", rule))
        _hang_up(mirror)
        mirror.wait_for_event("configuration reloaded", workers=2)
        for pid in before:
            mirror.wait_for_event("stopped", worker=pid)
        now = (420.0, ["docker.io/library/app:v1"], 401, 200)
        for _ in range(10):
            assert seen(mirror) == now
        config.write_text(text("9m", "first-token") + "nonsense = 1\n")
        _hang_up(mirror)
        mirror.wait_for_event("configuration not reloaded")
        for _ in range(5):
            assert seen(mirror) == now


def _status(port: int, token: str) -> int:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)) as connection:
        connection.request("GET", "/admin/v1/status", headers={"Authorization": f"Bearer {token}"})
        return connection.getresponse().status
