"""`delete` and `undelete` beside a running mirror, whose workers answer by it at once."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirror.oci.digest import Digest
from mirror.store.local import quarantine
from mirror.store.local.layout import Layout
from tests.support.admin_client import ask_admin
from tests.support.hosted_here import HostedHere
from tests.support.mirror_process import MirrorProcess, write_config
from tests.support.process import run

_MORE = """
[[hosted]]
name = "corp"
[[access.rule]]
effect = "allow"
callers = ["*"]
actions = ["pull"]
repositories = ["corp/**"]
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Of a mirror that hosts an image."""
    HostedHere(tmp_path / "store").image([b"layer"], tag="v1")
    return write_config(tmp_path, {"docker.io": "http://127.0.0.1:9"}, more=_MORE)


@pytest.fixture
def mirror(config: Path) -> Iterator[MirrorProcess]:
    """Two workers of it."""
    with MirrorProcess(config) as process:
        yield process


def _everywhere(mirror: MirrorProcess, target: str) -> set[int]:
    """The statuses on many connections, so that every worker has answered."""
    return {mirror.get(target)[0] for _ in range(20)}


def test_every_worker_knows_at_once(mirror: MirrorProcess, config: Path) -> None:
    """After each command, no worker answers by what it remembers."""

    def cli(*words: str) -> str:
        return run([sys.executable, "-m", "mirror", *words, "--config", config]).decode()

    manifest, layer = "/v2/corp/team/app/manifests/v1", f"/v2/corp/team/app/blobs/{Digest.of(b'layer')}"
    assert _everywhere(mirror, manifest) == _everywhere(mirror, layer) == {200}
    assert "deleted: 1 tag" in cli("delete", "corp/team/app:v1")
    assert _everywhere(mirror, manifest) == {404}
    assert "corp/team/app:v1" in cli("undelete")
    cli("undelete", "corp/team/app:v1")
    assert _everywhere(mirror, manifest) == {200}
    socket = config.parent / "store/admin.sock"
    for method, path, status in (
        ("DELETE", "hosted/corp/team/app", 400),
        ("DELETE", "hosted/corp/team/app:v1?repository=true", 400),
        ("DELETE", "hosted/library/app:v1", 400),
        ("DELETE", "hosted/corp/team/app:v1?now=perhaps", 400),
        ("DELETE", "hosted/corp/team/app:v2", 404),
        ("POST", "deleted/corp/team/app:v1", 404),
        ("GET", "deleted?limit=0", 400),
        ("DELETE", "images/corp/team/app:v1", 409),
        ("PUT", "pins/corp/team/app:v1", 409),
    ):
        assert ask_admin(socket, method, f"/admin/v1/{path}").status == status, path
    assert _everywhere(mirror, manifest) == {200}
    erased = json.loads(cli("delete", "corp/team/app:v1", "--now", "--json"))
    assert (erased["blobs"], erased["elsewhere"]) == (3, [])
    assert _everywhere(mirror, manifest) == _everywhere(mirror, layer) == {404}
    assert cli("ls", "corp/**", "--json") == ""


def test_status_names_damaged_blobs(config: Path) -> None:
    """Of a running mirror and of one that does not run; the repositories that lack the blob are named."""
    layout, layer = Layout(config.parent / "store"), Digest.of(b"layer")
    quarantine.put_hosted(layout, layer)
    expected = {"digest": str(layer), "size": 5, "repositories": ["corp/team/app"]}

    def look() -> None:
        shown = json.loads(run([sys.executable, "-m", "mirror", "status", "--json", "--verbose", "--config", config]))
        assert (shown["store"]["hosted_damaged"], shown["damaged_more"]) == (1, 0)
        [damaged] = shown["damaged"]
        assert expected.items() <= damaged.items()

    look()
    with MirrorProcess(config):
        look()
        assert ask_admin(layout.root / "admin.sock", "GET", "/admin/v1/damaged?limit=0").status == 400
    said = run([sys.executable, "-m", "mirror", "status", "--config", config]).decode()
    assert "damaged:   1 hosted blob: push their images again; `mirror status --verbose` names them" in said
    said = run([sys.executable, "-m", "mirror", "status", "--verbose", "--config", config]).decode()
    assert f"{layer} of corp/team/app" in said
