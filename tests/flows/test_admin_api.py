"""What the admin API tells and does beside jobs, by both of two workers; who may; and that its document is true."""

from __future__ import annotations

import base64
import http.client
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import bcrypt
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from mirror.config import load
from mirror.errors import ConfigError
from mirror.oci.reference import Repo
from mirror.policy.records import Pin
from mirror.server.admin.operations import OPERATIONS, PREFIX
from mirror.store.local.layout import Layout
from mirror.store.local.local_records import local_pins
from tests.support.admin_client import AdminReply, ask_admin
from tests.support.command import Done
from tests.support.command import mirror as command
from tests.support.fake_registry import FakeRegistry, stall
from tests.support.hosted_here import HostedHere
from tests.support.live_mirror import noise
from tests.support.mirror_process import MirrorProcess, write_config
from tests.support.process import PATIENCE, eventually
from tests.support.redis_server import RedisServer
from tests.support.scripted import Stall

_SIZE = 1 << 20
_APP = "docker.io/library/app"


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    """Three images; `v2` and `twin` share a layer."""
    with FakeRegistry() as running:
        for number in range(3):
            running.add_image("library/app", f"v{number}", [noise(_SIZE, number)])
        running.add_image("team/twin", "v1", [noise(_SIZE, 2), noise(_SIZE, 7)])
        yield running


@pytest.fixture
def config(registry: FakeRegistry, tmp_path: Path) -> Path:
    """Two workers, a rule that pins, and an audit log."""
    more = [
        '[[pin]]\nmatch = "docker.io/library/app:v0"\nreason = "the base"',
        '[[sync]]\nname = "team/nightly"\nfrom = "docker.io/library/app"\ntags = "v2"\ncron = "0 0 1 1 *"',
        f"[access]\naudit_log = {json.dumps(str(tmp_path / 'audit.log'))}",
    ]
    return write_config(
        tmp_path, {"docker.io": registry.url}, workers=2, more="\n".join([*more, "[[hosted]]", 'name = "corp"'])
    )


@pytest.fixture
def mirror(config: Path) -> Iterator[MirrorProcess]:
    """Running."""
    with MirrorProcess(config) as running:
        running.wait_for_event("admin listening")
        yield running


@pytest.fixture
def api(tmp_path: Path) -> Callable[..., AdminReply]:
    """Asks below the prefix."""

    def ask(method: str, path: str, body: object = None) -> AdminReply:
        return ask_admin(tmp_path / "store/admin.sock", method, f"{PREFIX}{path}", body)

    return ask


def _pull(mirror: MirrorProcess, name: str, tag: str) -> list[str]:
    """Everything of an image; its digests. Blobs are counted and logged after they were sent."""
    status, headers, manifest = mirror.get(f"/v2/{name}/manifests/{tag}")
    assert status == 200
    parsed = json.loads(manifest)
    blobs = [descriptor["digest"] for descriptor in (parsed["config"], *parsed["layers"])]
    for digest in blobs:
        path = f"/v2/{name}/blobs/{digest}"
        known = len(mirror.requests(path=path))
        assert mirror.get(path)[0] == 200
        eventually(lambda path=path, known=known: len(mirror.requests(path=path)) > known, "it is logged")  # type: ignore[misc]
    return [headers["Docker-Content-Digest"], *blobs]


def _audited(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "audit.log").read_text().splitlines()]


def _mirror(*arguments: str, config: Path) -> Done:
    return command(*arguments, "--config", config)


def _tcp(mirror: MirrorProcess) -> str:
    """The address at which the admin API listens on TCP."""

    def question() -> str | None:
        addresses = [line["address"] for line in mirror.log if line.get("event") == "admin listening"]
        return next((address for address in addresses if not address.startswith("unix:")), None)

    return eventually(question, "the admin API listens")


# ------------------------------------------------------------------------------------------------------ what is shown


def test_every_worker_reports_a_download(
    mirror: MirrorProcess, registry: FakeRegistry, api: Callable[..., AdminReply]
) -> None:
    """Whichever worker fills it, both tell of it with its progress; afterwards both tell that it is over."""
    gate = Stall()
    registry.fail("blobs", stall(gate, after=_SIZE // 2), times=1)
    [layer] = json.loads(mirror.get("/v2/library/app/manifests/v1")[2])["layers"]
    pulling = threading.Thread(target=mirror.get, args=(f"/v2/library/app/blobs/{layer['digest']}",))
    pulling.start()
    try:
        seen: dict[int, Any] = {}

        def by_all() -> bool:
            reply = api("GET", "/flights")
            if any(flight["received"] for flight in reply.json["flights"]):
                seen[reply.worker] = reply.json["flights"]
            return len(seen) == 2

        eventually(by_all, "both workers tell of it")
        for flights in seen.values():
            [flight] = flights
            assert (flight["repository"], flight["upstream"], flight["followers"]) == (_APP, "docker.io", 1)
            assert len(flight["workers"]) == 1
        assert [worker["worker"] for worker in api("GET", "/status").json["workers"]] == sorted(mirror.worker_pids())
    finally:
        gate.release()
        pulling.join(PATIENCE)
    quiet: set[int] = set()

    def over() -> bool:
        reply = api("GET", "/flights")
        (quiet.discard if reply.json["flights"] else quiet.add)(reply.worker)
        return len(quiet) == 2

    eventually(over, "both know that it is over")


def test_the_status_of_a_killed_worker_is_dropped(mirror: MirrorProcess, api: Callable[..., AdminReply]) -> None:
    """Its place is taken by its successor; nobody counts it any more."""
    eventually(lambda: len(api("GET", "/status").json["workers"]) == 2, "both have published their status")
    victim = mirror.worker_pids()[0]
    mirror.kill_worker(victim)

    def replaced() -> bool:
        workers = {worker["worker"] for worker in api("GET", "/status").json["workers"]}
        return victim not in workers and len(workers) == 2

    eventually(replaced, "the dead worker is gone, the new one is there")


def test_hits_and_savings(mirror: MirrorProcess, api: Callable[..., AdminReply]) -> None:
    """Over all workers: what was pulled twice came once, and the history says the same as the totals."""
    _pull(mirror, "library/app", "v1")

    def counted(requests: int) -> dict[str, Any]:
        # an answer is counted once it is sent, and its client may be quicker
        def question() -> dict[str, Any] | None:
            traffic: dict[str, Any] = api("GET", "/status").json["traffic"]
            return traffic if traffic["requests"] == requests else None

        return eventually(question, f"{requests} requests are counted")

    before = counted(3)
    _pull(mirror, "library/app", "v1")
    after = counted(6)
    assert after["hits"] - before["hits"] == 3
    assert after["received"] == before["received"] >= _SIZE
    assert after["saved"] == after["sent"] - after["received"] > _SIZE
    points = api("GET", "/history").json["points"]
    assert sum(point["requests"] for point in points) == 6
    assert sum(point["sent"] for point in points) == after["sent"]


def test_upstreams(mirror: MirrorProcess, registry: FakeRegistry, api: Callable[..., AdminReply]) -> None:
    """Every worker shows that an upstream which does not answer is down, and when it is asked again."""
    _pull(mirror, "library/app", "v1")
    [upstream] = api("GET", "/upstreams").json["upstreams"]
    assert (upstream["name"], upstream["state"], upstream["budget"]) == ("docker.io", "ok", None)
    registry.stop()
    down: set[int] = set()

    def both_show_it() -> bool:
        mirror.get("/v2/library/nope/manifests/v1")
        reply = api("GET", "/upstreams")
        if reply.json["upstreams"][0]["state"] == "down":
            down.add(reply.worker)
        return len(down) == 2

    eventually(both_show_it, "both show that it is down")


def test_images_by_pages_and_search(mirror: MirrorProcess, api: Callable[..., AdminReply]) -> None:
    """In an order, each once, by a part of the name in any case, or by a pattern."""
    for name, tag in (("library/app", "v0"), ("library/app", "v1"), ("library/app", "v2"), ("team/twin", "v1")):
        _pull(mirror, name, tag)
    everything = [f"{_APP}:v0", f"{_APP}:v1", f"{_APP}:v2", "docker.io/team/twin:v1"]
    paged, after = [], ""
    while True:
        page = api("GET", f"/images?limit=1&after={after}").json
        paged += [image["image"] for image in page["images"]]
        if (after := page["next"]) is None:
            break
    assert paged == everything
    for search, count in {"APP": 3, "app:v1": 1, "app:v": 3, "twin": 1, "library/*:v?": 3, "nope": 0, "": 4}.items():
        assert len(api("GET", f"/images?search={search}").json["images"]) == count, search
    [image] = api("GET", "/images?search=app:v0").json["images"]
    assert (image["complete"], image["pinned"], image["missing"]) == (True, True, 0)
    whole = api("GET", f"/images/{_APP}:v2").json
    assert whole["shared"] >= _SIZE
    assert api("GET", "/images/docker.io%2Flibrary%2Fapp%3Av2").json == whole
    assert api("GET", f"/images/{_APP}@{whole['digest']}").json["digest"] == whole["digest"]
    absent = api("GET", f"/images/{_APP}:v9")
    assert (absent.status, absent.code) == (404, "MANIFEST_UNKNOWN")


def test_settings_without_secrets(registry: FakeRegistry, tmp_path: Path, api: Callable[..., AdminReply]) -> None:
    """Every setting, as it counts; no password, no token."""
    more = '[[access.token]]\nname = "ci"\ntoken = "s3cret-token"\n[[upstream]]\nname = "ghcr.io"\nusername = "me"\n'
    more += 'password = "s3cret-password"\nproxy = "http://me:s3cret-proxy@proxy.example:3128"'
    config = write_config(tmp_path, {"docker.io": registry.url}, workers=1, more=more)
    with MirrorProcess(config) as mirror:
        mirror.wait_for_event("admin listening")
        shown = api("GET", "/config").json
    assert shown["server"]["workers"] == 1
    assert shown["upstream"][1]["username"] == "me"
    assert "s3cret" not in json.dumps(shown)
    assert "s3cret" in config.read_text()


# ------------------------------------------------------------------------------------------------- what is changed


def test_pins(mirror: MirrorProcess, api: Callable[..., AdminReply], config: Path, tmp_path: Path) -> None:
    """Set, told beside those of rules, by `mirror pins` in the same words, taken away again; all of it is written
    down.
    """
    _pull(mirror, "library/app", "v0")
    [rule] = api("GET", "/pins").json["pins"]
    assert (rule["image"], rule["rule"], rule["reason"]) == (f"{_APP}:v0", f"{_APP}:v0", "the base")
    pinned = api("PUT", "/pins/app:v1", {"reason": "audit", "until": "30d"})
    assert (pinned.status, pinned.json["image"], pinned.json["digest"]) == (200, f"{_APP}:v1", None)
    listed = api("GET", "/pins").json["pins"]
    assert [(pin["image"], bool(pin["since"]), bool(pin["until"])) for pin in listed] == [
        (f"{_APP}:v0", False, False),
        (f"{_APP}:v1", True, True),
    ]
    by_command = json.loads(_mirror("pins", "--json", config=config).out)
    assert [{name: pin[name] for name in listed[0]} for pin in by_command] == listed
    assert api("DELETE", "/pins/app:v1").status == 200
    again = api("DELETE", "/pins/app:v1")
    assert (again.status, again.code) == (404, "PIN_UNKNOWN")
    bodies: list[object] = [[], {"until": "yesterday"}, {"reason": 1}, {"nope": 1}, {"until": 5}]
    for body in bodies:
        assert (api("PUT", "/pins/app:v1", body).status, len(api("GET", "/pins").json["pins"])) == (400, 1), body
    lines = [line for line in _audited(tmp_path) if line["action"] in ("pin", "unpin") and line["status"] == 200]
    assert [(line["action"], line["reference"], line.get("reason")) for line in lines] == [
        ("pin", "v1", "audit"),
        ("unpin", "v1", None),
    ]
    assert all(line["caller"].startswith("unix:") for line in lines)


def test_purge(mirror: MirrorProcess, registry: FakeRegistry, api: Callable[..., AdminReply], tmp_path: Path) -> None:
    """What the image alone needs goes, what another needs stays; no worker answers it from memory, or serves a blob in
    this repository that only another one may serve now.
    """
    alone = _pull(mirror, "library/app", "v2")
    _pull(mirror, "team/twin", "v1")
    manifest, shared = alone[0], alone[2]
    for _ in range(8):
        # both workers have it in memory
        mirror.get("/v2/library/app/manifests/v2")
        assert mirror.get(f"/v2/library/app/blobs/{shared}")[0] == 200
    purged = api("DELETE", f"/images/{_APP}:v2")
    assert (purged.status, purged.json["tags"], purged.json["manifests"]) == (200, ["v2"], [manifest])
    assert purged.json["bytes"] < _SIZE
    blobs = tmp_path / "store/blobs/sha256"
    assert not (blobs / manifest[7:9] / manifest[7:]).exists()
    assert (blobs / shared[7:9] / shared[7:]).exists()
    assert api("GET", f"/images/{_APP}:v2").status == 404
    assert mirror.get(f"/v2/team/twin/blobs/{shared}")[0] == 200

    registry.stop()
    gone: list[int] = []

    def forgotten(target: str) -> bool:
        gone.append(mirror.get(target)[0])
        return len(gone) > 20 and all(status >= 500 for status in gone[-20:])

    eventually(lambda: forgotten("/v2/library/app/manifests/v2"), "no worker answers it from memory")
    gone.clear()
    eventually(lambda: forgotten(f"/v2/library/app/blobs/{shared}"), "no worker serves its blob")
    assert mirror.get(f"/v2/team/twin/blobs/{shared}")[0] == 200
    [line] = [line for line in _audited(tmp_path) if line["action"] == "purge"]
    assert (line["repository"], line["reference"], line["status"]) == (_APP, "v2", 200)


def test_purge_of_one_of_two_tags(
    mirror: MirrorProcess, registry: FakeRegistry, api: Callable[..., AdminReply]
) -> None:
    """The other tag keeps the content; by digest both go."""
    registry.add_image("library/app", "same", [noise(_SIZE, 1)])
    digests = _pull(mirror, "library/app", "v1")
    assert _pull(mirror, "library/app", "same") == digests
    purged = api("DELETE", f"/images/{_APP}:v1").json
    assert (purged["tags"], purged["manifests"], purged["blobs"]) == (["v1"], [], 0)
    assert api("GET", f"/images/{_APP}:same").json["complete"]
    purged = api("DELETE", f"/images/{_APP}@{digests[0]}").json
    assert (purged["tags"], purged["manifests"]) == (["same"], [digests[0]])
    assert api("GET", "/images").json["images"] == []


def test_what_is_pinned_or_frozen_is_not_purged(
    mirror: MirrorProcess, config: Path, api: Callable[..., AdminReply]
) -> None:
    """It says why, and nothing is dropped."""
    _pull(mirror, "library/app", "v0")
    _pull(mirror, "library/app", "v1")
    refused = api("DELETE", f"/images/{_APP}:v0")
    assert (refused.status, refused.code) == (409, "PROTECTED")
    assert "the rule" in refused.json["errors"][0]["message"]
    assert _mirror("freeze", "app:v1", config=config).status == 0
    refused = api("DELETE", f"/images/{_APP}:v1")
    assert (refused.status, "frozen" in refused.json["errors"][0]["message"]) == (409, True)
    assert all(image["complete"] for image in api("GET", "/images").json["images"])


def test_evict(registry: FakeRegistry, tmp_path: Path, api: Callable[..., AdminReply]) -> None:
    """The plan says what goes next and changes nothing; the run brings the store down to the low water."""
    config = write_config(tmp_path, {"docker.io": registry.url}, workers=1, capacity="3300KB")
    text = config.read_text().replace('capacity = "3300KB"', 'capacity = "3300KB"\nhigh_water = 1.0\nlow_water = 0.5')
    config.write_text(text)
    with MirrorProcess(config) as mirror:
        mirror.wait_for_event("admin listening")
        for number in range(3):
            _pull(mirror, "library/app", f"v{number}")
        plan = api("GET", "/eviction?bytes=1").json
        assert [image["names"] for image in plan["images"]] == [[f"{_APP}:v0"]]

        def stored() -> int | None:
            size: int = api("GET", "/status").json["store"]["bytes"]
            return size if size > 3 * _SIZE else None

        before = eventually(stored, "the index knows of everything")
        done = json.loads(_mirror("evict", "--json", config=config).out)
        assert [image["names"] for image in done["images"]] == [[f"{_APP}:v0"], [f"{_APP}:v1"]]
        assert api("GET", "/status").json["store"]["bytes"] == before - done["bytes"]


def test_the_command_line_asks_the_server(
    mirror: MirrorProcess, config: Path, api: Callable[..., AdminReply], tmp_path: Path
) -> None:
    """`mirror status` and `mirror purge` do the same beside a server and without one; both are written down."""
    for tag in ("v1", "v2"):
        _pull(mirror, "library/app", tag)
    status = json.loads(_mirror("status", "--json", config=config).out)
    assert len(status["workers"]) == 2
    assert status["traffic"]["requests"] == 6
    assert "2 workers" in _mirror("status", config=config).out
    # the config of both is the same
    assert "purged, 2 blobs" in _mirror("purge", "app:v1", config=config).out
    assert api("GET", f"/images/{_APP}:v1").status == 404
    mirror.stop()
    assert "not running" in _mirror("status", config=config).out
    alone = json.loads(_mirror("status", "--json", config=config).out)
    assert (alone.keys(), alone["workers"], alone["traffic"]) == (status.keys(), [], None)
    assert "purged, 3 blobs" in _mirror("purge", "app:v2", config=config).out
    absent = _mirror("purge", "app:v2", config=config)
    assert (absent.status, "is not here" in absent.err) == (1, True)
    assert _mirror("pin", "app:v1", "--reason", "why", config=config).status == 0
    assert _mirror("unpin", "app:v1", config=config).status == 0
    assert _mirror("evict", config=config).status == 0
    actions = [
        (line["action"], line["caller"].partition(":")[0])
        for line in _audited(tmp_path)
        if line["action"] not in ("pull", "collect")
    ]
    assert actions == [("purge", "unix"), *[("purge", "cli")] * 2, ("pin", "cli"), ("unpin", "cli"), ("evict", "cli")]


def test_pinning_by_command_is_the_same_with_a_server_and_without(
    mirror: MirrorProcess, api: Callable[..., AdminReply], config: Path, tmp_path: Path
) -> None:
    """The output, the exit status, and the audit log but for the caller. A server that runs does it itself."""
    digest, _, layer = _pull(mirror, "library/app", "v0")
    # the tag is written down a moment after its answer
    eventually(lambda: api("GET", "/images/app:v0").status == 200, "the image is listed")
    _pull(mirror, "library/app", "v1")
    eventually(lambda: api("GET", "/images/app:v1").status == 200, "the other image, too")
    pins = local_pins(Layout(tmp_path / "store"))
    pins.put(Pin(Repo("docker.io", "library/old"), "v1", "was for a month", 1e9, 1.1e9))
    pins.put(Pin(Repo("docker.io", "library/spoilt"), "v1", "", 1e9))
    [spoilt] = [file for file in (tmp_path / "store/pins").iterdir() if b"spoilt" in file.read_bytes()]
    spoilt.write_bytes(spoilt.read_bytes()[:60])
    (tmp_path / "store/blobs/sha256" / layer[7:9] / layer[7:]).unlink()
    commands = [
        ["pin", "app:v0", "app:v1", "app:v9", "--reason", "why", "--until", "30d"],
        ["pin", f"app:v0@{digest}", "--until", "2999-01-01T12:00+01:00"],
        ["pins"],
        ["pins", "--json"],
        ["unpin", "app:v1", "app:v2", "app:v9"],
        ["unpin", f"app@{digest}"],
        ["unpin", "app:v0"],
        ["unpin", "app:v0"],
        ["pin", "app:v1", "--until", "yesterday", "--reason", "x" * 1001],
        ["pin", "app:v1", "nowhere.example/x"],
        ["unpin", "app@sha256:12"],
        ["pins", "--json"],
    ]

    def run_all() -> list[tuple[int, str, str]]:
        done = [_mirror(*words, config=config) for words in commands]
        now = re.compile(r"(?!2001|2004|2999)[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9:]+")
        return [(result.status, now.sub("NOW", result.out), result.err) for result in done]

    def audited(by: str) -> list[dict[str, Any]]:
        lines = [
            line for line in _audited(tmp_path) if line["action"] in ("pin", "unpin") and line["caller"].startswith(by)
        ]
        fields = ("action", "repository", "reference", "status", "reason")
        return [{name: line.get(name) for name in fields} for line in lines]

    beside = run_all()
    eventually(lambda: len(audited("unix:")) == 10, "each change has its line")
    assert [status for status, _, _ in beside] == [0, 0, 1, 1, 1, 0, 0, 1, 2, 2, 2, 1]
    assert beside[0][1].splitlines() == [
        f"{_APP}:v0: pinned, incomplete: 1 layer missing",
        f"{_APP}:v1: pinned, complete",
        f"{_APP}:v9: pinned, not here yet; it stays once it was pulled",
    ]
    listed = json.loads(beside[3][1])
    assert [(pin["image"].rpartition("/")[2], pin["state"], pin["missing_digests"]) for pin in listed] == [
        ("app:v0", "incomplete", [layer]),
        ("app:v1", "complete", []),
        ("app:v9", "absent", []),
        (f"app@{digest}", "incomplete", [layer]),
        ("old:v1", "expired", []),
        ("spoilt:v1", "absent", []),
    ]
    assert "`mirror unpin docker.io/library/spoilt:v1` mends it" in beside[3][2]
    assert f"{_APP}@{digest}: still protected by the pin of {_APP}:v0" in beside[5][1]
    assert f"{_APP}:v0: still protected by the rule {_APP}:v0" in beside[6][1]
    mirror.stop()
    assert run_all() == beside
    assert audited("cli:") == audited("unix:")


def test_status_says_what_is_out_of_order(registry: FakeRegistry, tmp_path: Path) -> None:
    """Pulls go on without Redis and around a store that takes nothing; `mirror status` shows both."""
    with RedisServer() as redis:
        config = write_config(tmp_path, {"docker.io": registry.url}, workers=1, capacity="100KB", index=redis.url)
        registry.add_image("library/small", "v1", [noise(1000, 9)])
        for number, name in enumerate(("kept", "more")):
            registry.add_image(f"library/{name}", "v1", [noise(70_000, number)])

        def shows(*lines: str) -> bool | None:
            status = _mirror("status", config=config)
            titles = [line.partition(":")[0] for line in status.out.splitlines()]
            assert status.status == 0
            return [line for line in titles if line in ("uncached", "index")] == list(lines) or None

        with MirrorProcess(config) as mirror:
            mirror.wait_for_event("admin listening")
            assert shows()
            # a request that failed is no traffic
            assert mirror.get("/v2/library/unknown/manifests/v1")[0] == 404
            assert "traffic:   nothing served yet" in _mirror("status", config=config).out
            _pull(mirror, "library/kept", "v1")
            assert _mirror("pin", "kept:v1", "--reason", "leaves no room", config=config).status == 0
            layer = _pull(mirror, "library/more", "v1")[-1]
            # the rest of the image may be written only now, and that counts as stored

            def refused() -> bool | None:
                assert mirror.get(f"/v2/library/more/blobs/{layer}")[0] == 200
                return shows("uncached")

            eventually(refused, "pins leave no room")
            redis.kill()
            eventually(lambda: shows("uncached", "index"), "Redis does not answer")
            _pull(mirror, "library/small", "v1")
            eventually(lambda: shows("index"), "a layer was stored")
        assert shows("index")
        assert "no connection to Redis" in _mirror("status", config=config).out


# ------------------------------------------------------------------------------------------------------- who may come


@pytest.fixture
def guarded(registry: FakeRegistry, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """An address over TCP where `alice` may administer and `bob` may not; one upstream verifies its callers."""
    hashed = [f"{name}:{bcrypt.hashpw(name.encode(), bcrypt.gensalt(4)).decode()}" for name in ("alice", "bob")]
    (tmp_path / "htpasswd").write_text("\n".join(hashed) + "\n")
    more = [
        '[admin]\nlisten = "0.0.0.0:0"',
        f"[access]\nhtpasswd = {json.dumps(str(tmp_path / 'htpasswd'))}",
        f"audit_log = {json.dumps(str(tmp_path / 'audit.log'))}",
        '[[access.rule]]\neffect = "allow"\ncallers = ["user:alice", "token:ops", "upstream:*"]\nactions = ["admin"]',
        '[[access.token]]\nname = "ops"\ntoken = "t0ken"',
        '[[upstream]]\nname = "ghcr.io"\naccess = "verify"',
    ]
    config = write_config(tmp_path, {"docker.io": registry.url}, workers=1, more="\n".join(more))
    with MirrorProcess(config) as mirror:
        yield f"127.0.0.1:{_tcp(mirror).rpartition(':')[2]}", tmp_path


def _basic(name: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{name}".encode()).decode()}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        (_basic("bob"), 403),
        ({"Authorization": "Basic " + base64.b64encode(b"alice:wrong").decode()}, 401),
        (_basic("somebody-elsewhere"), 401),
        (_basic("alice"), 200),
        ({"Authorization": "Bearer t0ken"}, 200),
        ({"Authorization": "Bearer wrong"}, 401),
        ({**_basic("alice"), "Host": "mirror.example"}, 200),
        ({**_basic("alice"), "Host": "mirror.example", "Origin": "https://mirror.example"}, 200),
        ({**_basic("alice"), "Host": "mirror.example", "Origin": "https://evil.example"}, 403),
        ({**_basic("alice"), "Sec-Fetch-Site": "cross-site"}, 403),
    ],
)
def test_over_tcp_one_must_log_in(guarded: tuple[str, Path], headers: dict[str, str], status: int) -> None:
    """By name and password or a token, of somebody whom a rule allows it; the page and the API alike. Credentials that
    only some upstream could judge let nobody in.
    """
    address, _ = guarded
    for target in ("/", "/page.js", "/admin/v1/status"):
        with closing(http.client.HTTPConnection(address, timeout=PATIENCE)) as connection:
            connection.request("GET", target, headers=headers)
            answer = connection.getresponse()
            answer.read()
            assert answer.status == status, target
            if status == 401:
                assert answer.headers["WWW-Authenticate"].startswith("Basic ")


def test_changes_over_tcp(guarded: tuple[str, Path]) -> None:
    """They need a header that no other site can send, and are written down with who made them, refusals too."""
    address, folder = guarded
    for headers, status in (({}, 401), (_basic("alice"), 403), ({**_basic("alice"), "Mirror-Admin": "1"}, 200)):
        with closing(http.client.HTTPConnection(address, timeout=PATIENCE)) as connection:
            connection.request("PUT", "/admin/v1/pins/app:v1", headers=headers)
            assert connection.getresponse().status == status
    lines = [(line["action"], line.get("caller"), line["status"], line["client"]) for line in _audited(folder)]
    assert lines == [
        ("pin", None, 401, "127.0.0.1"),
        ("pin", "user:alice", 403, "127.0.0.1"),
        ("pin", "user:alice", 200, "127.0.0.1"),
    ]
    # the socket stays open to its owner
    assert ask_admin(folder / "store/admin.sock", "DELETE", "/admin/v1/pins/app:v1").status == 200


@pytest.mark.parametrize(
    ("more", "lacking"),
    [
        ("", "a way to log in"),
        ('[[access.token]]\nname = "a"\ntoken = "b"', "[[access.rule]]"),
        ('[[access.rule]]\neffect = "allow"\ncallers = ["*"]\nactions = ["admin"]', "a way to log in"),
        (
            '[[access.token]]\nname = "a"\ntoken = "b"\n'
            '[[access.rule]]\neffect = "allow"\ncallers = ["anonymous"]\nactions = ["admin"]',
            "[[access.rule]]",
        ),
    ],
)
def test_without_rights_it_is_for_this_machine_alone(tmp_path: Path, more: str, lacking: str) -> None:
    """A configuration that would let strangers administer is refused, and says what it lacks."""
    path = tmp_path / "mirror.toml"
    path.write_text(f'[admin]\nlisten = "0.0.0.0:5001"\n{more}\n')
    with pytest.raises(ConfigError) as refused:
        load(path)
    [mistake] = refused.value.mistakes
    assert mistake.startswith("admin.listen: 0.0.0.0:5001")
    assert lacking in mistake


def test_the_page_keeps_to_itself(registry: FakeRegistry, tmp_path: Path) -> None:
    """Its headers allow its own files alone, and no cookie is set."""
    config = write_config(tmp_path, {"docker.io": registry.url}, workers=1, more='[admin]\nlisten = "127.0.0.1:0"')
    with MirrorProcess(config) as mirror:
        address = _tcp(mirror)
        scripts = [(name, "text/javascript") for name in ("/page.js", "/hosted.js")]
        for target, kind in (("/", "text/html"), ("/page.css", "text/css"), *scripts):
            for method in ("GET", "HEAD"):
                with closing(http.client.HTTPConnection(address, timeout=PATIENCE)) as connection:
                    connection.request(method, target)
                    answer = connection.getresponse()
                    body = answer.read()
                assert (answer.status, bool(body)) == (200, method == "GET")
                assert answer.headers["Content-Type"] == f"{kind}; charset=utf-8"
                policy = answer.headers["Content-Security-Policy"]
                assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'")
                assert "unsafe" not in policy
                assert answer.headers["X-Content-Type-Options"] == "nosniff"
                assert answer.headers["Referrer-Policy"] == "no-referrer"
                assert "Set-Cookie" not in answer.headers


# ----------------------------------------------------------------------------------------------------- the document


def test_the_document_is_true(
    mirror: MirrorProcess, registry: FakeRegistry, api: Callable[..., AdminReply], tmp_path: Path
) -> None:
    """It is good OpenAPI 3.1, names exactly what exists, and every answer is as it says, errors too."""
    document = api("GET", "/openapi.json").json
    OpenAPIV31SpecValidator(document).validate()
    named = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert named == {(operation.method, f"{PREFIX}{operation.path}") for operation in OPERATIONS}

    for tag in ("v0", "v1", "v2"):
        _pull(mirror, "library/app", tag)
    HostedHere(tmp_path / "store").image([b"layer"], tag="v1")
    job = api("POST", "/prefetch", {"images": ["app:v1"]}).json["id"]
    eventually(lambda: api("GET", f"/jobs/{job}").json["state"] == "done", "the job is done")
    requests = [
        ("GET", "/status", None), ("GET", "/history", None), ("GET", "/flights", None), ("GET", "/upstreams", None),
        ("GET", "/images?search=app&limit=2", None), ("GET", "/images?limit=0", None), ("GET", "/images?nope=1", None),
        ("GET", "/images/app:v1", None), ("GET", "/images/app:v9", None), ("GET", "/images/UPPER", None),
        ("PUT", "/pins/app:v1", {"reason": "x"}), ("PUT", "/pins/app:v1", {"until": "x"}), ("GET", "/pins", None),
        ("GET", "/pins?state=true", None), ("GET", "/pins?state=1", None),
        ("DELETE", "/images/app:v1", None), ("DELETE", "/pins/app:v1", None), ("DELETE", "/pins/app:v1", None),
        ("DELETE", "/images/app:v1", None), ("GET", "/eviction?bytes=1000000", None),
        ("GET", "/eviction?bytes=x", None), ("POST", "/eviction", None),
        ("POST", "/prefetch", {"images": ["app:v2"]}), ("POST", "/prefetch", {}),
        ("GET", "/jobs", None), ("GET", f"/jobs/{job}", None), ("DELETE", f"/jobs/{job}", None),
        ("GET", "/jobs/nope", None), ("DELETE", "/jobs/nope", None), ("GET", "/sync", None),
        ("POST", "/sync/team/nightly/run", None), ("POST", "/sync/nope/run", None), ("GET", "/config", None),
        ("GET", "/clients", None), ("GET", "/clients?mirror=ftp://x", None), ("GET", "/openapi.json", None),
        ("GET", "/caches", None),
        ("DELETE", "/hosted/corp/team/app:v1", None), ("DELETE", "/hosted/corp/team/app:v1", None),
        ("DELETE", "/hosted/corp/team/app", None), ("GET", "/deleted", None), ("GET", "/deleted?limit=0", None),
        ("POST", "/deleted/corp/team/app:v1", None), ("POST", "/deleted/corp/team/app:v1", None),
        ("POST", "/deleted/app:v1", None), ("DELETE", "/hosted/corp/team/app?repository=true&now=true", None),
        ("PUT", "/pins/corp/team/app:v1", None), ("DELETE", "/images/corp/team/app:v1", None),
        ("GET", "/collection", None), ("POST", "/collection", None),
        ("GET", "/retention", None), ("POST", "/retention", None),
        ("GET", "/retention/plan?repository=corp/team/app", None), ("GET", "/retention/plan", None),
        ("GET", "/damaged", None), ("GET", "/damaged?limit=0", None),
        ("GET", "/hosted?limit=1", None), ("GET", "/hosted?limit=0", None),
        ("GET", "/events", None), ("GET", "/events?limit=0", None), ("POST", "/events/resend", None),
        ("POST", "/events/resend?endpoint=nowhere", None), ("POST", "/copies", {}),
        ("GET", "/replication", None), ("POST", "/replication/nope/run", None),
    ]  # fmt: skip
    tried = set()
    for method, path, body in requests:
        reply = api(method, path, body)
        template = _template(document, path.partition("?")[0])
        tried.add((method, template))
        responses = document["paths"][template][method.lower()]["responses"]
        assert str(reply.status) in responses, (method, path, reply)
        schema = responses[str(reply.status)]["content"]["application/json"]["schema"]
        validator = Draft202012Validator({**schema, "components": document["components"]})
        assert [error.message for error in validator.iter_errors(reply.json)] == [], (method, path)
    assert tried == named


def _template(document: Any, path: str) -> str:
    """The path of the document that is meant, by its first part and its end."""
    for template in document["paths"]:
        head, brace, tail = str(template).removeprefix(PREFIX).partition("{")
        end = tail.partition("}")[2]
        if path == head or (brace and path.startswith(head) and path.endswith(end) and len(path) > len(head)):
            return str(template)
    raise AssertionError(path)
