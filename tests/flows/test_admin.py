"""The admin API and its jobs, as a process with two workers: each worker shows and cancels the jobs of both."""

from __future__ import annotations

import http.client
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mirror.process.listeners import open_admin
from mirror.store.local.json_records import JsonRecords
from mirror.store.local.layout import Layout
from tests.support.admin_client import AdminReply, ask_admin
from tests.support.command import Done
from tests.support.command import mirror as command
from tests.support.fake_registry import FakeRegistry, stall
from tests.support.live_mirror import noise
from tests.support.mirror_process import MirrorProcess, write_config
from tests.support.process import PATIENCE, CommandFailed, eventually, run
from tests.support.scripted import Stall

_SIZE = 1 << 21
_APP = {"images": ["app:v1"]}


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    """Three images of one layer each."""
    with FakeRegistry() as running:
        for number in range(3):
            running.add_image("library/app", f"v{number}", [noise(_SIZE, number)])
        yield running


@pytest.fixture
def config(registry: FakeRegistry, tmp_path: Path) -> Path:
    """Two workers, and a rule that is not due."""
    rule = '[[sync]]\nname = "team/nightly"\nfrom = "docker.io/library/app"\ntags = "v2"\ncron = "0 0 1 1 *"'
    return write_config(tmp_path, {"docker.io": registry.url}, workers=2, more=rule)


@pytest.fixture
def socket(tmp_path: Path) -> Path:
    """The default address of the admin API."""
    return tmp_path / "store/admin.sock"


@pytest.fixture
def mirror(config: Path) -> Iterator[MirrorProcess]:
    """Running, its admin API too."""
    with MirrorProcess(config) as running:
        running.wait_for_event("admin listening")
        yield running


def _wait(socket: Path, job: str, *states: str) -> dict[str, Any]:
    """The job, once it is in one of these states."""

    def question() -> dict[str, Any] | None:
        record = ask_admin(socket, "GET", f"/admin/v1/jobs/{job}").json
        return record if record["state"] in states else None

    return eventually(question, f"job {job} is {' or '.join(states)}")


def _begin(socket: Path, body: object = None) -> str:
    reply = ask_admin(socket, "POST", "/admin/v1/prefetch", body or _APP)
    assert reply.status == 202, reply
    assert reply.headers["Location"] == f"/admin/v1/jobs/{reply.json['id']}"
    return str(reply.json["id"])


def _by_every_worker(mirror: MirrorProcess, question: Callable[[], AdminReply]) -> dict[int, AdminReply]:
    """The last answer of each worker, once all have answered: who accepts is the kernel's choice."""
    answers: dict[int, AdminReply] = {}
    workers = set(mirror.worker_pids())

    def ask() -> bool:
        reply = question()
        answers[reply.worker] = reply
        return answers.keys() >= workers

    eventually(ask, "every worker has answered")
    return {pid: reply for pid, reply in answers.items() if pid in workers}


# ------------------------------------------------------------------------------------------------------------- jobs


def test_a_job_is_seen_by_all(mirror: MirrorProcess, registry: FakeRegistry, socket: Path) -> None:
    """A job that one request begins is shown with its progress by either worker, until its end."""
    gate = Stall()
    # the config that both have is a blob too, and comes through
    registry.fail("blobs", stall(gate, after=_SIZE // 2), times=3)
    job = _begin(socket, {"images": ["app:v1", "docker.io/library/app:v2"], "platforms": [], "referrers": True})

    def moving() -> bool:
        progress = ask_admin(socket, "GET", f"/admin/v1/jobs/{job}").json.get("progress", {})
        return any(blob["received"] and blob["size"] for blob in progress.get("under_way", []))

    eventually(moving, "its progress is shown")
    for reply in _by_every_worker(mirror, lambda: ask_admin(socket, "GET", "/admin/v1/jobs")).values():
        [listed] = reply.json["jobs"]
        assert (listed["id"], listed["state"], listed["progress"]["images"]) == (job, "running", 2)
    gate.release()
    done = _wait(socket, job, "done")
    assert done["result"]["ok"]
    assert [image["image"] for image in done["result"]["images"]] == done["arguments"]["images"]
    assert done["progress"]["received"] == done["progress"]["size"] > 2 * _SIZE
    registry.stop()
    assert mirror.get("/v2/library/app/manifests/v1")[0] == 200


def test_a_job_that_fails_says_why(mirror: MirrorProcess, socket: Path) -> None:
    """What is not there is named, and the rest is brought in."""
    job = _begin(socket, {"images": ["app:v1", "app:nope"]})
    failed = _wait(socket, job, "failed")
    assert [image["ok"] for image in failed["result"]["images"]] == [False, True]
    assert failed["result"]["images"][0]["failures"][0]["reason"]
    mirror.wait_for_event("job ended", job=job, state="failed")


def test_a_job_is_cancelled_by_either_worker(mirror: MirrorProcess, registry: FakeRegistry, socket: Path) -> None:
    """Also by the worker that does not run it; cancelling again changes nothing, and asking again is possible."""
    gate = Stall()
    registry.fail("blobs", stall(gate, after=1000), times=2)
    job = _begin(socket)
    running = _wait(socket, job, "running")
    for reply in _by_every_worker(mirror, lambda: ask_admin(socket, "DELETE", f"/admin/v1/jobs/{job}")).values():
        assert reply.status == (200 if reply.json["state"] == "cancelled" else 202)
    cancelled = _wait(socket, job, "cancelled")
    assert cancelled["worker"] == running["worker"]
    gate.release()
    assert ask_admin(socket, "DELETE", f"/admin/v1/jobs/{job}").status == 200
    again = _begin(socket)
    _wait(socket, again, "done")


def test_jobs_wait_for_their_turn(mirror: MirrorProcess, registry: FakeRegistry, socket: Path) -> None:
    """Two jobs run at once, over all workers; a waiting one can be cancelled, and the next one gets its turn."""
    gate = Stall()
    registry.fail("blobs", stall(gate), times=10)
    running = [_begin(socket, {"images": [f"app:v{number}"]}) for number in range(2)]
    for job in running:
        _wait(socket, job, "running")
    waiting = [_begin(socket) for _ in range(2)]
    cancelled = ask_admin(socket, "DELETE", f"/admin/v1/jobs/{waiting[0]}")
    assert (cancelled.status, cancelled.json["state"]) == (200, "cancelled")
    assert ask_admin(socket, "GET", f"/admin/v1/jobs/{waiting[1]}").json["state"] == "queued"
    gate.release()
    for job in (*running, waiting[1]):
        _wait(socket, job, "done")
    assert ask_admin(socket, "GET", f"/admin/v1/jobs/{waiting[0]}").json["started"] is None


def test_a_job_of_a_killed_worker_is_interrupted(mirror: MirrorProcess, registry: FakeRegistry, socket: Path) -> None:
    """After kill -9 of the worker that runs it, the other one shows so at once; requested again, the job goes on."""
    gate = Stall()
    registry.fail("blobs", stall(gate, after=1000), times=2)
    job = _begin(socket)
    running = _wait(socket, job, "running")
    mirror.kill_worker(running["worker"])
    mirror.wait_for_event("worker died")
    interrupted = _wait(socket, job, "interrupted")
    assert interrupted["result"] == {"error": "its process ended before it was done"}
    gate.release()
    _wait(socket, _begin(socket), "done")


def test_what_waits_outlives_the_mirror(registry: FakeRegistry, config: Path, socket: Path) -> None:
    """A running job is interrupted by a stop; the next process takes up a waiting one."""
    gate = Stall()
    registry.fail("blobs", stall(gate), times=10)
    with MirrorProcess(config) as mirror:
        mirror.wait_for_event("admin listening")
        running = [_begin(socket, {"images": [f"app:v{number}"]}) for number in range(2)]
        for job in running:
            _wait(socket, job, "running")
        waiting = _begin(socket)
        assert mirror.stop() == 0
    gate.release()
    with MirrorProcess(config) as mirror:
        mirror.wait_for_event("admin listening")
        _wait(socket, waiting, "done")
        for job in running:
            assert ask_admin(socket, "GET", f"/admin/v1/jobs/{job}").json["state"] == "interrupted"


def test_old_jobs_are_dropped(mirror: MirrorProcess, config: Path, socket: Path) -> None:
    """After a week, and beyond two hundred; notes that make no sense are passed over."""
    notes = JsonRecords(Layout(config.parent / "store"), "jobs")
    now = time.time()
    for number in range(210):
        name = f"{number:04}"
        notes.put(name, {"id": name, "kind": "prefetch", "state": "done", "created": now - 1000 + number})
    notes.put("old", {"id": "old", "kind": "prefetch", "state": "failed", "created": now - 8 * 86400})
    notes.put("junk", {"state": "what", "created": []})
    _wait(socket, _begin(socket), "done")
    listed = {job["id"] for job in ask_admin(socket, "GET", "/admin/v1/jobs").json["jobs"]}
    assert len(listed) == 201
    assert not listed & {"old", "junk", "0000", "0009"}
    assert {"0010", "0209"} <= listed


# ------------------------------------------------------------------------------------------------------------- sync


def test_a_sync_is_run_as_a_job(mirror: MirrorProcess, registry: FakeRegistry, socket: Path) -> None:
    """The rule and the job both show the run; a second run meanwhile is refused."""
    gate = Stall()
    registry.fail("blobs", stall(gate), times=2)
    [rule] = ask_admin(socket, "GET", "/admin/v1/sync").json["rules"]
    assert (rule["name"], rule["state"], rule["schedule"]) == ("team/nightly", "never ran", "cron 0 0 1 1 *")
    assert rule["next_run"].endswith("-01-01T00:00:00Z") or "-01-01T00:0" in rule["next_run"]
    reply = ask_admin(socket, "POST", "/admin/v1/sync/team%2Fnightly/run")
    assert reply.status == 202
    _wait(socket, reply.json["id"], "running")
    eventually(lambda: ask_admin(socket, "GET", "/admin/v1/sync").json["rules"][0]["progress"], "its progress is shown")
    refused = ask_admin(socket, "POST", "/admin/v1/sync/team/nightly/run")
    assert (refused.status, refused.code) == (409, "ALREADY_RUNNING")
    gate.release()
    assert _wait(socket, reply.json["id"], "done")["result"]["new"] == ["docker.io/library/app:v2"]
    [rule] = ask_admin(socket, "GET", "/admin/v1/sync").json["rules"]
    assert (rule["state"], rule["started_by"], rule["result"]["tags"]) == ("ok", "job", 1)
    unknown = ask_admin(socket, "POST", "/admin/v1/sync/nope/run")
    assert (unknown.status, unknown.code) == (404, "RULE_UNKNOWN")


def test_the_worker_that_syncs_is_replaced(registry: FakeRegistry, tmp_path: Path, socket: Path) -> None:
    """A rule that is due runs by itself in one worker; when that one is killed in the middle, the run is interrupted
    and another worker does it.
    """
    gate = Stall()
    registry.fail("blobs", stall(gate), times=1)
    rule = '[[sync]]\nfrom = "docker.io/library/app"\ntags = "v1"\nevery = "60s"'
    config = write_config(tmp_path, {"docker.io": registry.url}, workers=2, more=rule)
    with MirrorProcess(config) as mirror:
        worker = mirror.wait_for_event("sync scheduler started")["worker"]
        assert gate.reached.wait(PATIENCE)
        mirror.kill_worker(worker)
        gate.release()
        ended = mirror.wait_for_event("sync ended")
        assert (ended["result"], ended["new_images"]) == ("ok", 0) or ended["new_images"] == 1
        begun = [line["worker"] for line in mirror.log if line["event"] == "sync scheduler started"]
        assert len(begun) == 2
        assert begun[1] != worker


# ------------------------------------------------------------------------------------------- what can go wrong, and who


@pytest.mark.parametrize(
    ("method", "target", "body", "status", "code", "message"),
    [
        ("GET", "/admin/v1/nope", None, 404, "UNSUPPORTED", "admin API"),
        ("GET", "/page", None, 404, "UNSUPPORTED", "admin API"),
        ("GET", "/v2/", None, 404, "UNSUPPORTED", "admin API"),
        ("GET", "/admin/v1/jobs/../status", None, 404, "UNSUPPORTED", "admin API"),
        ("GET", "/admin/v1/jobs/nope", None, 404, "JOB_UNKNOWN", "nope"),
        ("DELETE", "/admin/v1/jobs/nope", None, 404, "JOB_UNKNOWN", "nope"),
        ("GET", "/admin/v1/prefetch", None, 405, "UNSUPPORTED", "POST"),
        ("POST", "/admin/v1/jobs", {}, 405, "UNSUPPORTED", "GET, HEAD"),
        ("POST", "/admin/v1/prefetch", None, 400, "BODY_INVALID", "not JSON"),
        ("POST", "/admin/v1/prefetch", b"{", 400, "BODY_INVALID", "not JSON"),
        ("POST", "/admin/v1/prefetch", b"[" * 100_000, 400, "BODY_INVALID", "not JSON"),
        ("POST", "/admin/v1/prefetch", b"\xff", 400, "BODY_INVALID", "not JSON"),
        ("POST", "/admin/v1/prefetch", [], 400, "BODY_INVALID", "not an object"),
        ("POST", "/admin/v1/prefetch", {}, 400, "BODY_INVALID", "images"),
        ("POST", "/admin/v1/prefetch", {"images": []}, 400, "BODY_INVALID", "images"),
        ("POST", "/admin/v1/prefetch", {"images": "app"}, 400, "BODY_INVALID", "images"),
        ("POST", "/admin/v1/prefetch", {"images": [1]}, 400, "BODY_INVALID", "images"),
        ("POST", "/admin/v1/prefetch", {"images": ["UPPER/app"]}, 400, "BODY_INVALID", "UPPER"),
        ("POST", "/admin/v1/prefetch", {"images": ["nope.example/app"]}, 400, "BODY_INVALID", "not configured"),
        ("POST", "/admin/v1/prefetch", {"images": ["app"] * 2001}, 400, "BODY_INVALID", "more than 2000"),
        ("POST", "/admin/v1/prefetch", {**_APP, "platforms": ["amd64"]}, 400, "BODY_INVALID", "platforms"),
        ("POST", "/admin/v1/prefetch", {**_APP, "platforms": "linux/amd64"}, 400, "BODY_INVALID", "platforms"),
        ("POST", "/admin/v1/prefetch", {**_APP, "referrers": 1}, 400, "BODY_INVALID", "referrers"),
        ("POST", "/admin/v1/prefetch", {**_APP, "platform": []}, 400, "BODY_INVALID", "no such field"),
        ("POST", "/admin/v1/prefetch", b" " * ((1 << 20) + 1), 413, "BODY_INVALID", "bytes"),
    ],
)
def test_mistakes_are_named(
    shared: Path, method: str, target: str, body: object, status: int, code: str, message: str
) -> None:
    """In the shape of all errors of the mirror, with the status that fits; no job comes of it."""
    answer = ask_admin(shared, method, target, body)
    assert (answer.status, answer.code) == (status, code)
    assert message in answer.json["errors"][0]["message"]
    if status == 405:
        assert answer.headers["Allow"] == message
    assert ask_admin(shared, "GET", "/admin/v1/jobs").json == {"jobs": []}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The socket of one mirror for all mistakes."""
    directory = tmp_path_factory.mktemp("admin")
    with FakeRegistry() as registry:
        config = write_config(directory, {"docker.io": registry.url}, workers=1)
        with MirrorProcess(config) as mirror:
            mirror.wait_for_event("admin listening")
            yield directory / "store/admin.sock"


def test_status(mirror: MirrorProcess, socket: Path) -> None:
    """Which version, which worker, how full."""
    for pid, reply in _by_every_worker(mirror, lambda: ask_admin(socket, "GET", "/admin/v1/status")).items():
        assert reply.json["worker"] == pid
        assert reply.json["version"]
        assert reply.json["uptime"] >= 0
        assert reply.json["store"]["limit"] == 10_000_000_000
        assert reply.json["flights"] == 0


def test_it_is_never_public(mirror: MirrorProcess, registry: FakeRegistry) -> None:
    """The listener for pulls knows none of its paths, and upstream hears nothing of it."""
    for target in ("/admin/v1/status", "/admin/v1/jobs", "/admin/v1/sync", "/v2/../admin/v1/status", "//admin/v1/jobs"):
        for method in ("GET", "POST", "DELETE"):
            assert mirror.get(target, method=method)[0] in (404, 405)
    assert mirror.get("/admin/v1/status")[0] == 404
    assert registry.requests == []


def test_the_socket_is_for_this_user_alone(mirror: MirrorProcess, socket: Path) -> None:
    """Who can connect may do everything."""
    assert stat.S_IMODE(socket.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:1"}, 200),
        ({"Host": "[::1]:1"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.evil.example"}, 403),
    ],
)
def test_pages_of_a_browser_are_refused(
    registry: FakeRegistry, tmp_path: Path, headers: dict[str, str], status: int
) -> None:
    """On the loopback address any page can make a browser of this machine ask; it is not answered."""
    config = write_config(tmp_path, {"docker.io": registry.url}, workers=1, more='[admin]\nlisten = "127.0.0.1:0"')
    with MirrorProcess(config) as mirror:
        # the socket for the command line is heard besides
        address = eventually(
            lambda: next((address for address in _admin_addresses(mirror) if not address.startswith("unix:")), None),
            "it listens",
        )
        with closing(http.client.HTTPConnection(address, timeout=PATIENCE)) as connection:
            connection.request("GET", "/admin/v1/jobs", headers=headers)
            assert connection.getresponse().status == status


def _admin_addresses(mirror: MirrorProcess) -> list[str]:
    return [line["address"] for line in mirror.log if line.get("event") == "admin listening"]


def test_it_can_be_turned_off(registry: FakeRegistry, tmp_path: Path, socket: Path) -> None:
    """Then there is no socket, and `mirror jobs` reads the disk."""
    config = write_config(tmp_path, {"docker.io": registry.url}, workers=1, more='[admin]\nlisten = ""')
    with MirrorProcess(config) as mirror:
        assert mirror.get("/v2/")[0] == 200
        assert not socket.exists()
        done = _mirror("jobs", config=config)
        assert (done.status, done.out) == (0, "no jobs\n")


def test_a_newer_mirror_on_the_same_store_is_asked(registry: FakeRegistry, config: Path, socket: Path) -> None:
    """While one process takes over from another, the newer one answers, and goes on to when the older one ends."""
    with MirrorProcess(config) as older:
        older.wait_for_event("admin listening")
        with MirrorProcess(config) as newer:
            newer.wait_for_event("another mirror serves this store")
            newer.wait_for_event("admin listening")
            assert ask_admin(socket, "GET", "/admin/v1/status").worker in newer.worker_pids()
            assert older.stop() == 0
            assert ask_admin(socket, "GET", "/admin/v1/status").worker in newer.worker_pids()


def test_a_place_that_cannot_be_had(registry: FakeRegistry, tmp_path: Path, socket: Path) -> None:
    """If it is configured, it keeps the mirror from starting; the default one does not keep pulls from being served."""
    taken = tmp_path / "taken"
    taken.write_text("precious")
    config = write_config(tmp_path, {"docker.io": registry.url}, workers=1, more=f'[admin]\nlisten = "unix:{taken}"')
    with pytest.raises(CommandFailed, match=r"exit code 2\n(?s:.*)admin\.listen"):
        # a process of its own: its end closes the listeners for clients
        run([sys.executable, "-m", "mirror", "serve", "--config", config])
    assert taken.read_text() == "precious"
    socket.mkdir(parents=True)
    with MirrorProcess(write_config(tmp_path, {"docker.io": registry.url}, workers=2)) as mirror:
        assert mirror.get("/v2/")[0] == 200
        mirror.wait_for_event("admin API unavailable")


def test_a_long_path_and_an_old_socket(tmp_path: Path) -> None:
    """A store may lie deeper than the kernel lets a socket's path be, and may hold the socket of a dead mirror."""
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    for _ in range(2):
        opened = open_admin(f"unix:{folder}/admin.sock", 2)
        assert opened.address == f"unix:{folder}/admin.sock"
        assert len(opened.sockets) == 2
        opened.sockets[0].close()
    assert [entry.name for entry in folder.iterdir()] == ["admin.sock"]


# ---------------------------------------------------------------------------------------------------- the command line


def test_jobs_on_the_command_line(mirror: MirrorProcess, registry: FakeRegistry, config: Path, socket: Path) -> None:
    """Listed, shown and cancelled by `mirror jobs`."""
    assert _mirror("jobs", config=config).out == "no jobs\n"
    gate = Stall()
    registry.fail("blobs", stall(gate), times=2)
    job = _begin(socket)
    _wait(socket, job, "running")
    assert job in _mirror("jobs", config=config).out
    assert json.loads(_mirror("jobs", job, config=config).out)["id"] == job
    assert _mirror("jobs", job, "--cancel", config=config).out == f"job {job}: is being cancelled\n"
    _wait(socket, job, "cancelled")
    gate.release()
    assert _mirror("jobs", job, "--cancel", config=config).out == f"job {job}: is cancelled\n"
    [listed] = json.loads(_mirror("jobs", "--json", config=config).out)["jobs"]
    assert listed["state"] == "cancelled"
    unknown = _mirror("jobs", "nope", config=config)
    assert (unknown.status, unknown.err) == (1, "mirror: no job 'nope'\n")
    assert _mirror("jobs", "--cancel", config=config).status == 2


def test_jobs_without_a_server(mirror: MirrorProcess, registry: FakeRegistry, config: Path, socket: Path) -> None:
    """The disk tells of them the same as the mirror did; one whose process was killed is interrupted, one that waited
    can be cancelled.
    """
    failed = _begin(socket, {"images": ["app:nope"]})
    _wait(socket, failed, "failed")
    before = _mirror("jobs", "--json", config=config).out
    assert "has no tag nope" in _mirror("jobs", config=config).out
    gate = Stall()
    registry.fail("blobs", stall(gate), times=10)
    running = [_begin(socket) for _ in range(2)]
    for job in running:
        _wait(socket, job, "running")
    waiting = _begin(socket)
    mirror.kill()
    gate.release()
    listed = {job["id"]: job for job in json.loads(_mirror("jobs", "--json", config=config).out)["jobs"]}
    assert [listed[failed]] == json.loads(before)["jobs"]
    assert [listed[job]["state"] for job in running] == ["interrupted", "interrupted"]
    assert json.loads(_mirror("jobs", waiting, config=config).out)["state"] == "queued"
    assert _mirror("jobs", waiting, "--cancel", config=config).out == f"job {waiting}: is cancelled\n"
    unknown = _mirror("jobs", "nope", config=config)
    assert (unknown.status, unknown.err) == (1, "mirror: no job 'nope'\n")


def test_a_sync_by_hand_beside_a_server(mirror: MirrorProcess, config: Path, socket: Path) -> None:
    """The server shows what the command did, and serves what it fetched."""
    done = _mirror("sync", "--now", "team/nightly", config=config)
    assert (done.status, done.err) == (0, "")
    [rule] = ask_admin(socket, "GET", "/admin/v1/sync").json["rules"]
    assert (rule["state"], rule["started_by"]) == ("ok", "hand")
    assert mirror.get("/v2/library/app/manifests/v2")[0] == 200


def test_a_sync_by_hand_is_stopped_by_hand(
    mirror: MirrorProcess, registry: FakeRegistry, config: Path, socket: Path
) -> None:
    """Ctrl-C ends it, and it does not begin again by itself."""
    gate = Stall()
    registry.fail("blobs", stall(gate), times=2)
    command = [sys.executable, "-m", "mirror", "sync", "--now", "team/nightly", "--config", str(config)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as process:
        assert gate.reached.wait(PATIENCE)
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(PATIENCE) != 0
        gate.release()
    [rule] = ask_admin(socket, "GET", "/admin/v1/sync").json["rules"]
    assert rule["state"] == "cancelled"


def _mirror(*arguments: str, config: Path) -> Done:
    return command(*arguments, "--config", config)
