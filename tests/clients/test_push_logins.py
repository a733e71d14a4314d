"""Real clients push to a hosted registry with an account or a token, and show what they are refused."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import bcrypt
import pytest

from tests.clients.conftest import short_directory
from tests.support.command import mirror
from tests.support.containerd_process import ContainerdProcess, write_hosts
from tests.support.dockerd_process import DockerdProcess, PullFailed, PushFailed
from tests.support.mirror_process import MirrorProcess, write_config
from tests.support.podman import Podman
from tests.support.process import CommandFailed, run
from tests.support.pulls import OFFLINE
from tests.support.pushed import read_pushed

#: alice and the token may push to `corp/team/…`; bob may only pull.
_ALICE: Final = ("alice", "alices-word")
_BOB: Final = ("bob", "bobs-word")
_TOKEN: Final = ("ci", "a-token-of-some-length")
_ALLOWED: Final = ("--allow", "pull,write", "corp/team/**", "--expires", "never")
#: How clients show a refusal.
_DENIED: Final = r"(?i)denied|forbidden|403"
_UNAUTHORIZED: Final = r"(?i)unauthorized|no basic auth|authentication required|denied|401"


@dataclass(frozen=True, slots=True)
class _Guarded:
    mirror: MirrorProcess
    directory: Path

    def named(self, name: str) -> str:
        """A repository of `corp` with the tag `v1`, as clients write it."""
        return f"{self.mirror.address}/corp/{name}:v1"


@pytest.fixture(scope="module")
def guarded() -> Iterator[_Guarded]:
    directory = short_directory()
    hashed = {name: bcrypt.hashpw(word.encode(), bcrypt.gensalt(5)).decode() for name, word in (_ALICE, _BOB)}
    (directory / "htpasswd").write_text("".join(f"{name}:{one}\n" for name, one in hashed.items()))
    access = f"""
        [[hosted]]
        name = "corp"
        [access]
        anonymous = false
        htpasswd = "{directory}/htpasswd"
        [[access.token]]
        name = "ci"
        token = "{_TOKEN[1]}"
        [[access.rule]]
        effect = "allow"
        callers = ["user:alice", "token:ci"]
        actions = ["write", "delete"]
        repositories = ["corp/team/**"]
        [[access.rule]]
        effect = "allow"
        callers = ["authenticated"]
        repositories = ["corp/**"]
    """
    try:
        with MirrorProcess(write_config(directory, {"docker.io": "http://127.0.0.1:9"}, more=access)) as running:
            yield _Guarded(running, directory)
            text = "\n".join(map(str, running.log))
        assert not [word for _, word in (_ALICE, _BOB, _TOKEN) if word in text]
    finally:
        shutil.rmtree(directory)


@pytest.fixture(scope="module")
def robot(guarded: _Guarded) -> tuple[str, str]:
    """Name and secret of a robot that may push below `corp/team/`."""
    made = mirror("token", "create", "builds", *_ALLOWED, "--json", "--config", guarded.directory / "mirror.toml")
    assert made.status == 0, made
    return "builds", made.json["secret"]


@pytest.fixture(scope="module")
def dockerd(guarded: _Guarded) -> Iterator[DockerdProcess]:
    with DockerdProcess(guarded.directory / "d", mirror=guarded.mirror.url) as process:
        yield process


def _build(dockerd: DockerdProcess, name: str) -> None:
    dockerd.build(name, "FROM scratch\nCOPY own /own\n", {"own": name.encode()})


def test_docker(guarded: _Guarded, dockerd: DockerdProcess, robot: tuple[str, str]) -> None:
    """`docker login` and `docker push` with an account, a token and a robot; who may not push is told so."""
    for number, account in enumerate((_ALICE, _TOKEN, robot)):
        dockerd.log_in(guarded.mirror.address, *account)
        name = guarded.named(f"team/docker-{number}")
        _build(dockerd, name)
        dockerd.push(name, account=account)
        pushed = read_pushed(guarded.mirror.url, f"corp/team/docker-{number}", "v1", account=_BOB)
        assert pushed.manifest["config"]["digest"] == dockerd.inspect(name)["Id"]
    with pytest.raises(PushFailed, match=_DENIED):
        dockerd.push(name, account=_BOB)
    with pytest.raises(PushFailed, match=_UNAUTHORIZED):
        dockerd.push(name)
    elsewhere = guarded.named("other/docker")
    dockerd.tag(name, elsewhere)
    for account in (_ALICE, robot):
        with pytest.raises(PushFailed, match=_DENIED):
            dockerd.push(elsewhere, account=account)
    dockerd.remove(name)
    with pytest.raises(PullFailed):
        dockerd.pull(name)
    dockerd.pull(name, account=_BOB)


def test_podman(guarded: _Guarded, robot: tuple[str, str]) -> None:
    """The same with `podman login` and an `auth.json`."""
    name = guarded.named("team/podman")
    with closing(Podman(guarded.directory / "podman", guarded.mirror.address)) as podman:
        context = guarded.directory / "context"
        context.mkdir()
        (context / "own").write_text("of podman")
        (context / "Dockerfile").write_text("FROM scratch\nCOPY own /own\n")
        podman("build", "--isolation=chroot", "--tag", name, str(context))
        accounts = f"--authfile={guarded.directory}/auth.json"

        def log_in(account: tuple[str, str]) -> None:
            words = (f"--username={account[0]}", f"--password={account[1]}")
            podman("login", "--tls-verify=false", accounts, *words, guarded.mirror.address)

        with pytest.raises(CommandFailed):
            log_in(("alice", "wrong"))
        log_in(_BOB)
        with pytest.raises(CommandFailed, match=_DENIED):
            podman("push", "--tls-verify=false", accounts, name)
        for account in (_ALICE, _TOKEN, robot):
            log_in(account)
            podman("push", "--tls-verify=false", accounts, name)
        assert read_pushed(guarded.mirror.url, "corp/team/podman", "v1", account=_BOB).blobs


def test_skopeo(guarded: _Guarded, dockerd: DockerdProcess) -> None:
    """`--dest-creds`; a copy between two repositories takes both rights."""
    source = guarded.named("team/source")
    _build(dockerd, source)
    dockerd.push(source, account=_ALICE)

    def copy(target: str, *options: str) -> None:
        plain = ("--src-tls-verify=false", "--dest-tls-verify=false")
        words = ["skopeo", "--insecure-policy", "copy", *plain, *options, f"docker://{source}", f"docker://{target}"]
        run(words, env=OFFLINE)

    def creds(kind: str, account: tuple[str, str]) -> str:
        return f"--{kind}-creds={':'.join(account)}"

    copy(guarded.named("team/copied"), creds("src", _BOB), creds("dest", _TOKEN))
    copied = read_pushed(guarded.mirror.url, "corp/team/copied", "v1", account=_BOB)
    assert copied == read_pushed(guarded.mirror.url, "corp/team/source", "v1", account=_BOB)
    with pytest.raises(CommandFailed, match=_DENIED):
        copy(guarded.named("team/copied-2"), creds("src", _ALICE), creds("dest", _BOB))
    with pytest.raises(CommandFailed, match=_UNAUTHORIZED):
        copy(guarded.named("team/copied-3"), creds("src", _ALICE), "--dest-no-creds")
    delete = ["skopeo", "delete", "--tls-verify=false", f"docker://{guarded.named('team/copied')}"]
    with pytest.raises(CommandFailed, match=_DENIED):
        run([*delete, "--creds", ":".join(_BOB)], env=OFFLINE)
    run([*delete, "--creds", ":".join(_ALICE)], env=OFFLINE)


def test_containerd(guarded: _Guarded, dockerd: DockerdProcess) -> None:
    """`ctr --user` for pulls and pushes."""
    source, target = guarded.named("team/for-containerd"), guarded.named("team/by-containerd")
    _build(dockerd, source)
    dockerd.push(source, account=_ALICE)
    section = f'[host."{guarded.mirror.url}"]\n  capabilities = ["pull", "resolve", "push"]\n'
    hosts = write_hosts(guarded.directory / "hosts", {guarded.mirror.address: section})
    with ContainerdProcess(guarded.directory / "c", hosts=hosts) as containerd:
        place = ("--hosts-dir", str(hosts), "--user")
        snapshots = ("--snapshotter", containerd.snapshotter)
        containerd.ctr("images", "pull", *place, ":".join(_BOB), *snapshots, source)
        with pytest.raises(CommandFailed, match=_DENIED):
            containerd.ctr("images", "push", *place, ":".join(_BOB), target, source)
        containerd.ctr("images", "push", *place, ":".join(_TOKEN), target, source)
    pushed = read_pushed(guarded.mirror.url, "corp/team/by-containerd", "v1", account=_BOB)
    assert pushed == read_pushed(guarded.mirror.url, "corp/team/for-containerd", "v1", account=_BOB)
