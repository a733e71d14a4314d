"""`mirror doctor --push`: whether a machine could push to a mirror that hosts, found out without a push."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import bcrypt
import pytest

from mirror.oci.reference import Repo
from mirror.store.local.blobs import LocalStore
from mirror.store.local.layout import Layout
from mirror.store.local.local_records import local_repository_records
from tests.support.doctor import Doctor
from tests.support.mirror_process import MirrorProcess, write_config

_HOSTING = """
[[hosted]]
name = "corp"
repositories = ["team/*", "closed/*"]
quota = "1MB"
[access]
htpasswd = "{accounts}"
[[access.rule]]
effect = "allow"
callers = ["user:alice"]
actions = ["pull", "write"]
repositories = ["corp/team/*", "corp/else/*"]
[[access.rule]]
effect = "allow"
callers = ["user:bob"]
actions = ["pull"]
repositories = ["corp/team/*"]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a mirror that nobody pushes to: its configuration and store, and the root of a machine."""
    return tmp_path_factory.mktemp("mirror")


@pytest.fixture(scope="module")
def config(folder: Path) -> Path:
    """A mirror that hosts, with two accounts."""
    accounts = folder / "htpasswd"
    word = bcrypt.hashpw(b"wonderland", bcrypt.gensalt(4)).decode()
    accounts.write_text(f"alice:{word}\nbob:{word}\n")
    (folder / "word").write_text("wonderland\n")
    (folder / "root").mkdir()
    upstreams = {"docker.io": "http://127.0.0.1:9"}
    return write_config(folder, upstreams, workers=1, more=_HOSTING.format(accounts=accounts))


@pytest.fixture(scope="module")
def mirror(config: Path) -> Iterator[MirrorProcess]:
    """It runs."""
    with MirrorProcess(config) as process:
        yield process


def _doctor(folder: Path, url: str, repository: str, user: str = "alice") -> Doctor:
    login = ("--username", user, "--password-file", folder / "word")
    return Doctor(url, "--push", repository, "--root", folder / "root", *login)


def test_a_client_that_may_push(mirror: MirrorProcess, folder: Path) -> None:
    """Every finding is good, and nothing is left: no session, no repository, not even its name."""
    found = _doctor(folder, mirror.url, f"{mirror.address}/corp/team/app")
    assert found.code == 0, found.said
    good = ("login", "pull corp/team/app", "push corp/team/app", "large bodies")
    assert {found.level(what) for what in good} == {"ok"}
    layout = LocalStore(Layout(folder / "store")).layout
    assert not list(layout.uploads.iterdir())
    assert not local_repository_records(layout).is_taken(Repo("corp", "team/app"))
    assert "wonderland" not in found.said


@pytest.mark.parametrize(
    ("user", "repository", "what", "text", "advice"),
    [
        ("bob", "corp/team/app", "push corp/team/app", "user:bob may not push here", 'actions = ["push"]'),
        ("bob", "corp/closed/app", "pull corp/closed/app", "no such repository", 'actions = ["pull"]'),
        ("alice", "corp/else/app", "push corp/else/app", "does not allow repositories named", "[[hosted]]"),
        ("alice", "library/app", "push library/app", "is only cached here", "[[hosted]]"),
        ("carol", "corp/team/app", "login", "status 401", "mirror account list"),
    ],
)
def test_what_is_missing(
    mirror: MirrorProcess, folder: Path, user: str, repository: str, what: str, text: str, advice: str
) -> None:
    """The mirror's own words, and the rule or setting that would help."""
    found = _doctor(folder, mirror.url, repository, user)
    level, said, advised = found.findings[what]
    assert (found.code, level) == (1, "problem")
    assert text in said
    assert advice in advised


def test_on_the_mirrors_machine(mirror: MirrorProcess, config: Path, folder: Path, tmp_path: Path) -> None:
    """How full the hosted registries are, of the running mirror."""
    here = tmp_path / "mirror.toml"
    here.write_text(config.read_text().replace("127.0.0.1:0", mirror.address))
    login = ("--username", "alice", "--password-file", folder / "word")
    found = Doctor("--config", here, "--push", "corp/team/app", *login)
    assert found.level("push corp/team/app") == "ok"
    assert found.level("backup") == "warning"
    assert found.findings["hosted corp"] == ("ok", "0 B of 1 MB", "")
    here.write_text(here.read_text().replace('["pull", "write"]', '["pull"]'))
    found = Doctor("--config", here)
    assert "allows anybody to push" in found.findings["configuration"][1]


def test_a_name_that_is_none() -> None:
    """A repository has no tag."""
    found = Doctor("http://127.0.0.1:9", "--push", "corp/team/app:v1")
    assert found.code == 2
    assert "without a tag" in found.said
