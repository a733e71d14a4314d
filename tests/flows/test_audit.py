"""The audit log of a whole mirror: each kind of line says who did what, when, from where, and with which result."""

from __future__ import annotations

import base64
import json
import os
import pwd
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import bcrypt
import pytest

from tests.support.admin_client import ask_admin
from tests.support.command import mirror as command
from tests.support.fake_registry import FakeRegistry, status
from tests.support.mirror_process import MirrorProcess, write_config
from tests.support.process import eventually

_APP = "docker.io/library/app"
_PASSWORD = "canary-password"
_USER = pwd.getpwuid(os.geteuid()).pw_name


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as running:
        for tag in ("v1", "v2"):
            running.add_image("library/app", tag, [f"layer {tag}".encode()])
        yield running


@pytest.fixture
def config(registry: FakeRegistry, tmp_path: Path) -> Path:
    """With an account, and an audit log."""
    (tmp_path / "htpasswd").write_text(f"alice:{bcrypt.hashpw(_PASSWORD.encode(), bcrypt.gensalt(4)).decode()}\n")
    more = f'[access]\naudit_log = "{tmp_path}/audit.log"\nhtpasswd = "{tmp_path}/htpasswd"'
    return write_config(tmp_path, {"docker.io": registry.url}, workers=1, more=more)


class _Audit:
    """What was written since it was looked at last."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = 0
        self._began = datetime.now(UTC)

    def new(self) -> list[dict[str, Any]]:
        text = self._path.read_text() if self._path.exists() else ""
        assert _PASSWORD not in text
        lines = text.splitlines()
        found, self._seen = [json.loads(line) for line in lines[self._seen :]], len(lines)
        for line in found:
            at = datetime.fromisoformat(line["time"])
            assert self._began.replace(microsecond=0) <= at <= datetime.now(UTC)
        return found

    def one(self) -> dict[str, Any]:
        """The next one, without what is another each time. An answer may be there before its line is."""
        [line] = eventually(lambda: self.new() or None, "a line more")
        return {key: value for key, value in line.items() if key not in ("time", "id")}


@pytest.fixture
def audit(tmp_path: Path) -> _Audit:
    return _Audit(tmp_path / "audit.log")


def _basic(password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"alice:{password}".encode()).decode()}


def _mirror(config: Path, *arguments: str) -> int:
    return command(*arguments, "--config", config).status


def test_pulls_and_logins(config: Path, audit: _Audit) -> None:
    """Answered or not, by GET and HEAD, with the bytes that went out; a login that fails is nobody's."""
    with MirrorProcess(config) as mirror:
        _, _, manifest = mirror.get("/v2/library/app/manifests/v1", _basic(_PASSWORD))
        pulled = {"caller": "user:alice", "client": "127.0.0.1", "action": "pull", "repository": _APP, "status": 200}
        manifests = {**pulled, "kind": "manifest", "reference": "v1"}
        assert audit.one() == {**manifests, "method": "GET", "bytes": len(manifest)}
        mirror.get("/v2/library/app/manifests/v1", _basic(_PASSWORD), method="HEAD")
        assert audit.one() == {**manifests, "method": "HEAD", "bytes": 0}
        layer = json.loads(manifest)["layers"][0]
        mirror.get(f"/v2/library/app/blobs/{layer['digest']}", _basic(_PASSWORD))
        blob = {**pulled, "kind": "blob", "reference": layer["digest"], "method": "GET", "bytes": layer["size"]}
        assert audit.one() == blob
        mirror.get("/v2/library/app/tags/list")
        tags = audit.one()
        assert (tags["caller"], tags["kind"], tags["repository"]) == ("anonymous", "tags", _APP)
        mirror.get("/v2/library/app/manifests/nope", _basic(_PASSWORD))
        absent = audit.one()
        assert (absent["status"], absent["reference"], absent["caller"]) == (404, "nope", "user:alice")
        assert absent["reason"].startswith("ManifestUnknown")
        mirror.get("/v2/library/app/manifests/v1", _basic("wrong"))
        refused = audit.one()
        assert (refused["status"], refused.get("caller"), refused["action"]) == (401, None, "pull")
        mirror.get("/token", _basic(_PASSWORD))
        login = {"client": "127.0.0.1", "action": "login", "kind": "token", "method": "GET", "bytes": 0}
        assert audit.one() == {**login, "caller": "user:alice", "status": 200}
        mirror.get("/token", _basic("wrong"))
        assert audit.one() == {
            **login,
            "status": 401,
            "reason": "Unauthorized: unknown or wrong credentials",
        }
        for page in ("/livez", "/metrics"):
            mirror.get(page)
    assert audit.new() == []


def test_the_admin_api(config: Path, audit: _Audit, tmp_path: Path) -> None:
    """What changes something, over the socket as the user who asked; what could not be done, too; questions are not."""
    socket = tmp_path / "store/admin.sock"
    by = {"caller": f"unix:{_USER}", "client": "unix"}
    about = {**by, "repository": _APP, "reference": "v1"}
    with MirrorProcess(config) as mirror:
        mirror.wait_for_event("admin listening")
        mirror.get("/v2/library/app/manifests/v1")
        audit.one()
        ask_admin(socket, "PUT", "/admin/v1/pins/app:v1", {"reason": "the base"})
        assert audit.one() == {**about, "action": "pin", "status": 200, "reason": "the base"}
        ask_admin(socket, "DELETE", "/admin/v1/images/app:v1")
        kept = audit.one()
        assert kept["reason"].startswith("ImageProtected: ")
        assert {**kept, "reason": ""} == {**about, "action": "purge", "status": 409, "reason": ""}
        ask_admin(socket, "DELETE", "/admin/v1/pins/app:v1")
        assert audit.one() == {**about, "action": "unpin", "status": 200}
        ask_admin(socket, "DELETE", "/admin/v1/pins/app:v1")
        gone = audit.one()
        assert (gone["action"], gone["status"], gone["reason"].partition(":")[0]) == ("unpin", 404, "PinUnknown")
        purged = ask_admin(socket, "DELETE", "/admin/v1/images/app:v1").json
        assert audit.one() == {**about, "action": "purge", "status": 200, "bytes": purged["bytes"]}
        ask_admin(socket, "POST", "/admin/v1/eviction")
        assert audit.one() == {**by, "action": "evict", "status": 200, "bytes": 0}
        for path in ("status", "images", "pins", "eviction", "config"):
            ask_admin(socket, "GET", f"/admin/v1/{path}")
    assert audit.new() == []


def test_commands(config: Path, audit: _Audit, tmp_path: Path) -> None:
    """Each that changes something, with its result, also where it fails; what only looks is not written down."""
    by = {"caller": f"cli:{_USER}", "client": "local"}
    about = {**by, "repository": _APP, "reference": "v1"}
    with MirrorProcess(config) as mirror:
        for tag in ("v1", "v2"):
            _, headers, manifest = mirror.get(f"/v2/library/app/manifests/{tag}")
            for one in (json.loads(manifest)["config"], *json.loads(manifest)["layers"]):
                mirror.get(f"/v2/library/app/blobs/{one['digest']}")
    digest = headers["Docker-Content-Digest"]
    assert len(audit.new()) == 6
    assert _mirror(config, "pin", "app:v1", "--reason", "why") == 0
    assert audit.one() == {**about, "action": "pin", "status": 200, "reason": "why"}
    assert _mirror(config, "unpin", "app:v1") == 0
    assert audit.one() == {**about, "action": "unpin", "status": 200}
    assert _mirror(config, "unpin", "app:v1") == 1
    assert audit.one() == {
        **about,
        "action": "unpin",
        "status": 404,
        "reason": f"PinUnknown: {_APP}:v1 was not pinned by hand",
    }
    assert _mirror(config, "freeze", "app:v2") == 0
    frozen = {**by, "repository": _APP, "reference": "v2"}
    assert audit.one() == {**frozen, "action": "freeze", "status": 200, "digest": digest}
    assert _mirror(config, "purge", "app:v2") == 1
    kept = audit.one()
    assert (kept["action"], kept["status"], kept["reason"].partition(":")[0]) == ("purge", 409, "ImageProtected")
    assert _mirror(config, "unfreeze", "app:v2") == 0
    assert audit.one() == {**frozen, "action": "unfreeze", "status": 200}
    assert _mirror(config, "unfreeze", "app:v2") == 1
    assert "is not frozen" in audit.one()["reason"]
    bundle = tmp_path / "bundle.tar"
    assert _mirror(config, "export", "app:v1", "app:v2", "-o", str(bundle)) == 0
    assert audit.new() == []
    assert _mirror(config, "purge", "app:v1") == 0
    purged = audit.one()
    assert purged.pop("bytes") > 0
    assert purged == {**about, "action": "purge", "status": 200}
    imported = {**by, "action": "import", "source": str(bundle)}
    assert _mirror(config, "import", str(bundle), "--dry-run") == 0
    assert audit.new() == []
    assert _mirror(config, "import", str(bundle)) == 0
    assert audit.one() == {**imported, "status": 200, "images": 2, "refused": 0, "damaged": 0}
    bundle.write_bytes(b"no bundle")
    assert _mirror(config, "import", str(bundle)) == 1
    bad = audit.one()
    assert bad.pop("reason").startswith("BundleError: ")
    assert bad == {**imported, "status": 400}
    assert _mirror(config, "evict", "--dry-run") == 0
    assert audit.new() == []
    assert _mirror(config, "evict") == 0
    assert audit.one() == {**by, "action": "evict", "status": 200, "bytes": 0}


def test_commands_that_fetch(registry: FakeRegistry, config: Path, audit: _Audit) -> None:
    """With what they were asked for, the bytes that came, and the first of what failed; a list alone is no change."""
    config.write_text(config.read_text() + '[[sync]]\nname = "nightly"\nfrom = "app"\nevery = "1d"\n')
    by = {"caller": f"cli:{_USER}", "client": "local", "status": 200}
    assert _mirror(config, "prefetch", "app:v1", "--dry-run") == 0
    assert audit.new() == []
    assert _mirror(config, "prefetch", "app:v1") == 0
    fetched = audit.one()
    assert fetched.pop("bytes") > 0
    assert fetched == {**by, "action": "prefetch", "images": [f"{_APP}:v1"], "failures": 0}
    assert _mirror(config, "prefetch", "app:v1", "app:nope") == 1
    failed = audit.one()
    assert failed.pop("reason").startswith(f"{_APP}:nope: ")
    assert failed == {**by, "action": "prefetch", "images": [f"{_APP}:v1", f"{_APP}:nope"], "bytes": 0, "failures": 1}
    assert _mirror(config, "sync") == 0
    assert audit.new() == []
    assert _mirror(config, "sync", "--now", "nightly") == 0
    synced = audit.one()
    assert synced.pop("bytes") > 0
    assert synced == {**by, "action": "sync", "rule": "nightly"}
    registry.fail("tags", status(503), times=20)
    assert _mirror(config, "sync", "--now", "nightly") == 1
    failed = audit.one()
    assert failed.pop("reason").startswith("its tags: ")
    assert failed == {**by, "action": "sync", "rule": "nightly"}
