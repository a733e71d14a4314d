"""Copies that are asked for over the admin API, and rules of a mirror whose processes are killed."""

from __future__ import annotations

import base64
import http.client
import json
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import bcrypt

from mirror.oci.digest import Digest
from tests.support.admin_client import ask_admin
from tests.support.hosted_here import HostedHere
from tests.support.mirror_process import MirrorProcess, write_config
from tests.support.process import PATIENCE, eventually, run
from tests.support.push_target import Exchange, PushTarget

_LAYER = bytes(range(256)) * 8192


def _config(folder: Path, target: PushTarget, *more: str) -> Path:
    upstreams = {"docker.io": "http://127.0.0.1:9"}
    hosted = ['[[hosted]]\nname = "corp"', f'[[upstream]]\nname = "b.example.com"\nurl = "{target.url}"\npush = true']
    return write_config(folder, upstreams, workers=2, more="\n".join([*hosted, *more]))


_RULES = """
[[access.rule]]
effect = "allow"
callers = ["user:admin"]
actions = ["admin"]
[[access.rule]]
effect = "allow"
callers = ["user:ci"]
actions = ["pull"]
repositories = ["corp/team/**"]
[[access.rule]]
effect = "allow"
callers = ["user:ci"]
actions = ["push"]
repositories = ["corp/prod/**"]
"""


_ROBOT = ("token", "create", "promoter", "--allow", "pull", "corp/team/**", "--allow", "push", "corp/prod/**")


def _post(address: str, name: str, body: object, **headers: str) -> tuple[int, Any]:
    with closing(http.client.HTTPConnection(address, timeout=PATIENCE)) as connection:
        login = {"Authorization": "Basic " + base64.b64encode(f"{name}:{name}".encode()).decode()} if name else {}
        connection.request("POST", "/admin/v1/copies", body=json.dumps(body), headers={**login, **headers})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def test_a_caller_promotes_by_its_own_rights(tmp_path: Path, target: PushTarget) -> None:
    """Pull here and push there are enough, and needed; the right to administer is neither. Overwriting is one more."""
    hashed = [f"{name}:{bcrypt.hashpw(name.encode(), bcrypt.gensalt(4)).decode()}" for name in ("admin", "ci")]
    (tmp_path / "htpasswd").write_text("\n".join(hashed) + "\n")
    here = HostedHere(tmp_path / "store")
    here.image([b"layer"], tag="v1")
    here.image([b"layer", b"more"], tag="v2")
    access = (
        f"[access]\nhtpasswd = {json.dumps(str(tmp_path / 'htpasswd'))}\n"
        f"audit_log = {json.dumps(str(tmp_path / 'audit.log'))}"
    )
    virtual = '[[virtual]]\nname = "all"\nmembers = ["corp", "docker.io"]'
    config = _config(tmp_path, target, '[admin]\nlisten = "0.0.0.0:0"', access, _RULES, virtual)
    changes = {"Mirror-Admin": "1"}
    with MirrorProcess(config) as mirror:
        address = eventually(lambda: _tcp(mirror), "the admin API listens")
        promote = {"source": "corp/team/app:v1", "destination": "corp/prod/app"}
        assert _post(address, "", promote, **changes)[0] == 401
        assert _post(address, "ci", promote)[0] == 403
        status, answer = _post(address, "ci", promote, **changes)
        assert (status, answer["copied"]) == (200, 1)
        for body in (
            {"source": "corp/prod/app:v1", "destination": "corp/prod/other"},
            {"source": "corp/team/app:v1", "destination": "corp/elsewhere/app"},
            {"source": "corp/team/app:v1", "destination": "b.example.com/app"},
        ):
            assert _post(address, "ci", body, **changes)[0] == 403, body
        # an administrator is not somebody who may pull
        assert _post(address, "admin", promote, **changes)[0] == 403
        moved = {"source": "corp/team/app:v2", "destination": "corp/prod/app:v1"}
        status, answer = _post(address, "ci", moved, **changes)
        assert (status, answer["failed"]) == (200, 1)
        assert "overwrite" in answer["images"][0]["reason"]
        made = run([sys.executable, "-m", "mirror", *_ROBOT, "--json", "--config", config])
        robot = {"source": "corp/team/app:v1", "destination": "corp/prod/by-robot"}
        login = base64.b64encode(f"promoter:{json.loads(made)['secret']}".encode()).decode()
        status, answer = _post(address, "", robot, Authorization=f"Basic {login}", **changes)
        assert (status, answer["copied"]) == (200, 1)
        assert _post(address, "", moved, Authorization=f"Basic {login}", **changes)[1]["failed"] == 1
        # the socket is for operators
        reply = ask_admin(tmp_path / "store/admin.sock", "POST", "/admin/v1/copies", moved)
        assert (reply.status, reply.json["moved"]) == (200, 1)
        mistake = ask_admin(tmp_path / "store/admin.sock", "POST", "/admin/v1/copies", {"source": 1})
        assert (mistake.status, mistake.code) == (400, "BODY_INVALID")
        done = json.loads(
            run(
                [
                    sys.executable,
                    "-m",
                    "mirror",
                    "copy",
                    "corp/team/app:v2",
                    "corp/prod/app",
                    "--json",
                    "--config",
                    config,
                ]
            )
        )
        assert done["copied"] == 1
        # a virtual name tells a caller who may not pull what it means no more than a name of nothing
        answers = [
            _post(address, "ci", {"source": f"all/{name}:v1", "destination": "corp/prod/new"}, **changes)
            for name in ("prod/app", "none/app")
        ]
        texts = [answer["errors"][0]["message"].replace("prod/app", "none/app") for _, answer in answers]
        assert [status for status, _ in answers] == [400, 400]
        assert texts[0] == texts[1]
        by_virtual_name = {"source": "all/team/app:v1", "destination": "corp/prod/new"}
        assert _post(address, "ci", by_virtual_name, **changes)[0] == 200
    lines = [json.loads(line) for line in (tmp_path / "audit.log").read_text().splitlines()]
    copies = [line for line in lines if line["action"] == "copy"]
    assert [line["status"] for line in copies] == [
        401,
        403,
        200,
        *[403] * 4,
        200,
        200,
        200,
        200,
        400,
        200,
        400,
        400,
        200,
    ]
    assert copies[2]["caller"] == "user:ci"
    assert copies[2]["source"] == "corp/team/app:v1"


def _tcp(mirror: MirrorProcess) -> str | None:
    addresses = [line["address"] for line in mirror.log if line.get("event") == "admin listening"]
    found = next((address for address in addresses if not address.startswith("unix:")), None)
    return f"127.0.0.1:{found.rpartition(':')[2]}" if found else None


def test_148_a_run_goes_on_after_a_kill(tmp_path: Path, target: PushTarget) -> None:
    """The worker that replicates is killed in the middle of a blob, and then the whole mirror: whoever is next goes on,
    and sends no blob again that is there.
    """
    here = HostedHere(tmp_path / "store")
    small = here.image([b"small"], tag="v1")
    large = here.image([_LAYER], tag="v2")
    reached, released = threading.Event(), threading.Event()

    def held(exchange: Exchange, usual: Callable[[], bool]) -> bool:
        exchange.read(100_000)
        reached.set()
        released.wait(PATIENCE)
        return False

    rule = '[[replication]]\nname = "to-b"\nfrom = "corp/**"\nto = "b.example.com"'
    config = _config(tmp_path, target, rule)
    tags = target.repository("team/app").tags
    target.fail("patch", held, 2)
    with MirrorProcess(config) as mirror:
        assert reached.wait(PATIENCE)
        assert tags == {"v1": small.digest}
        scheduler = mirror.wait_for_event("replication scheduler started")
        reached.clear()
        mirror.kill_worker(scheduler["worker"])
        # another worker takes over
        assert reached.wait(PATIENCE)
        mirror.kill()
    released.set()
    commits = len(target.of_kind("commit"))
    with MirrorProcess(config):
        eventually(lambda: "v2" in tags, "the rest is replicated")
    assert tags == {"v1": small.digest, "v2": large.digest}
    assert target.repository("team/app").blobs[Digest.of(_LAYER)] == _LAYER
    # the layer alone: what was there was not sent again
    assert len(target.of_kind("commit")) == commits + 1
