"""The machine's files are changed whole, once, and can be taken back: `NodeFiles` and `Journal` on a real folder."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from mirror.nodes.clients import CLIENTS
from mirror.nodes.disk import NodeFiles
from mirror.nodes.journal import Difference, Journal
from mirror.nodes.plan import MirrorUrl, NodeRefused, Wanted
from tests.support.tmpfs import tmpfs

_DOCKER = "etc/docker/daemon.json"
_BEFORE = '{\n  "debug": true\n}\n'
_AT = 1700000000.0
_STAMP = "20231114T221320Z"


def _journal(root: Path, client: str = "docker") -> Journal:
    return Journal(NodeFiles(root), CLIENTS[client])


def _apply(root: Path, url: str = "http://mirror:5000", client: str = "docker", *registries: str) -> list[str]:
    """Paths of what was changed."""
    journal = _journal(root, client)
    wanted = Wanted(MirrorUrl.parse(url), registries, ("docker.io",))
    return [one.difference.path for one in journal.apply(CLIENTS[client].plan(journal, wanted), _AT)]


def _tree(root: Path) -> dict[str, tuple[int, str]]:
    """Every folder, link and file, with mode and content."""
    found = {}
    for path in sorted(root.rglob("*")):
        mode = path.lstat().st_mode
        content = os.readlink(path) if path.is_symlink() else path.read_text() if path.is_file() else ""
        found[str(path.relative_to(root))] = (mode, content)
    return found


def _files(root: Path) -> dict[str, tuple[int, str]]:
    return {path: what for path, what in _tree(root).items() if not stat.S_ISDIR(what[0])}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """With a `daemon.json` of somebody else."""
    path = tmp_path / "root"
    file = path / _DOCKER
    file.parent.mkdir(parents=True)
    file.write_text(_BEFORE)
    file.chmod(0o640)
    return path


def _written(root: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((root / _DOCKER).read_text())
    return found


# -------------------------------------------------------------------------------------------------------- forwards


def test_apply_once_and_again(root: Path) -> None:
    """The first time a backup is made, the second time nothing is done."""
    assert _apply(root) == [f"/{_DOCKER}"]
    assert _written(root)["registry-mirrors"] == ["http://mirror:5000"]
    backup = root / f"{_DOCKER}.before-mirror-{_STAMP}"
    assert (backup.read_text(), stat.S_IMODE(backup.stat().st_mode)) == (_BEFORE, 0o640)
    assert stat.S_IMODE((root / _DOCKER).stat().st_mode) == 0o640
    assert stat.S_IMODE((root / "etc/docker/mirror-configure.json").stat().st_mode) == 0o600
    before = _tree(root)
    assert _apply(root) == []
    assert _tree(root) == before


def test_other_wishes_leave_no_trace_of_the_old(root: Path) -> None:
    """Plans are made from what the file was before us."""
    _apply(root)
    _apply(root, "https://other.internal")
    assert _written(root) == {"debug": True, "registry-mirrors": ["https://other.internal"]}
    assert len(list((root / "etc/docker").glob("*.before-mirror-*"))) == 1


def test_files_that_are_wanted_no_more_go(root: Path) -> None:
    """From one registry to all: its own file would go before the common one."""
    start = _tree(root)
    _apply(root, "http://mirror:5000", "containerd", "docker.io")
    _apply(root, "http://mirror:5000", "containerd")
    assert not (root / "etc/containerd/certs.d/docker.io").exists()
    assert (root / "etc/containerd/certs.d/_default/hosts.toml").exists()
    _journal(root, "containerd").undo()
    assert _tree(root) == start


def test_a_link_is_followed_and_stays(root: Path) -> None:
    """An absolute one leads to a place below the root, as the client there would see it."""
    file = root / _DOCKER
    target = root / "data/docker.json"
    target.parent.mkdir()
    file.rename(target)
    file.symlink_to("/data/docker.json")
    start = _tree(root)
    _apply(root)
    assert file.is_symlink()
    assert "registry-mirrors" in target.read_text()
    _journal(root).undo()
    assert _tree(root) == start


def test_a_link_cannot_lead_out(root: Path, tmp_path: Path) -> None:
    """Neither by `..` nor by a circle."""
    (root / "etc/containerd").symlink_to("../../../outside")
    (tmp_path / "outside").mkdir()
    _apply(root, "http://mirror:5000", "containerd")
    assert not list((tmp_path / "outside").iterdir())
    assert (root / "outside/config.toml").exists()
    (root / "etc/containers").symlink_to("containers")
    with pytest.raises(NodeRefused, match="too many links"):
        _apply(root, "http://mirror:5000", "podman")


def test_a_file_without_write_permission(root: Path) -> None:
    """It is replaced by one that nobody may write to, either."""
    (root / _DOCKER).chmod(0o444)
    _apply(root)
    assert stat.S_IMODE((root / _DOCKER).stat().st_mode) == 0o444


def test_owner_and_attributes_stay(root: Path) -> None:
    """Whoever owned the file owns it after."""
    os.chown(root / _DOCKER, 12345, 54321)
    os.setxattr(root / _DOCKER, "user.kept", b"yes")
    _apply(root)
    status = (root / _DOCKER).stat()
    assert (status.st_uid, status.st_gid) == (12345, 54321)
    assert os.getxattr(root / _DOCKER, "user.kept") == b"yes"


def test_a_disk_that_cannot_be_written_to(tmp_path: Path) -> None:
    """It is said of which file, and nothing is left half done."""
    with tmpfs(tmp_path, "size=1m,nr_inodes=4") as root:
        (root / "etc").mkdir()
        (root / "etc/docker").mkdir()
        (root / _DOCKER).write_text(_BEFORE)
        with pytest.raises(NodeRefused, match=r"daemon\.json: No space left"):
            _apply(root)
        assert sorted(path.name for path in (root / "etc/docker").iterdir()) == ["daemon.json"]
        assert (root / _DOCKER).read_text() == _BEFORE


@pytest.mark.parametrize("free", [12, 24])
def test_a_disk_that_gets_full_in_the_midst(tmp_path: Path, free: int) -> None:
    """In the midst of a backup, or of the record of what is about to be done (KiB that are left): no copy stays that
    nobody knows of, none that is not whole, and once there is room the same command does it.
    """
    with tmpfs(tmp_path, "size=96k") as root:
        file = root / _DOCKER
        file.parent.mkdir(parents=True)
        file.write_text(text := json.dumps({"labels": ["x" * 20000]}))
        (root / "full").write_bytes(bytes((96 - 20 - free) * 1024))
        with pytest.raises(NodeRefused, match="No space left"):
            _apply(root)
        assert [path.name for path in file.parent.iterdir()] == ["daemon.json"]
        (root / "full").unlink()
        _apply(root)
        _journal(root).undo()
        assert [path.name for path in file.parent.iterdir()] == ["daemon.json"]
        assert file.read_text() == text


def test_what_is_no_text(root: Path) -> None:
    """It is left alone, and the place is named."""
    (root / _DOCKER).write_bytes(b'{"a": "\xff"}')
    with pytest.raises(NodeRefused, match=r"daemon\.json: not UTF-8 \(byte 7\)"):
        _apply(root)


def test_a_file_with_a_password_is_for_its_owner_alone(root: Path) -> None:
    """Also where it was readable by others before."""
    disk = NodeFiles(root)
    (root / _DOCKER).chmod(0o644)
    disk.write(f"/{_DOCKER}", "{}", secret=True)
    assert stat.S_IMODE((root / _DOCKER).stat().st_mode) == 0o600


# ------------------------------------------------------------------------------------------------------- backwards


@pytest.mark.parametrize("client", CLIENTS)
def test_undo_leaves_nothing(tmp_path: Path, client: str) -> None:
    """Files, folders, backups and the journal are gone where there was nothing before."""
    root = tmp_path / "root"
    root.mkdir()
    assert _apply(root, "http://mirror:5000", client)
    assert [one.difference.needs for one in _journal(root, client).undo()]
    assert _tree(root) == {}
    assert _journal(root, client).undo() == []


def test_undo_restores(root: Path) -> None:
    """Text, mode and all that was there."""
    start = _tree(root)
    _apply(root)
    _apply(root, "https://other.internal")
    _journal(root).undo()
    assert _tree(root) == start


def test_undo_refuses_what_was_changed_since(root: Path) -> None:
    """It shows what somebody did, names the backup, and touches nothing."""
    _apply(root)
    file = root / _DOCKER
    file.write_text(file.read_text().replace("true", "false"))
    before = _tree(root)
    with pytest.raises(NodeRefused) as caught:
        _journal(root).undo()
    assert '-  "debug": true' in str(caught.value)
    assert '+  "debug": false' in str(caught.value)
    assert f"before-mirror-{_STAMP}" in str(caught.value)
    assert _tree(root) == before


def test_what_somebody_wrote_between_two_runs_is_kept(root: Path) -> None:
    """The second run merges into it, and then nothing can be taken back blindly."""
    _apply(root)
    file = root / _DOCKER
    file.write_text('{"log-level": "warn"}')
    _apply(root, "https://other.internal")
    assert _written(root) == {"log-level": "warn", "registry-mirrors": ["https://other.internal"]}
    with pytest.raises(NodeRefused, match="edited between two runs"):
        _journal(root).undo()
    file.write_text(_BEFORE)
    assert _journal(root).undo() == []
    assert not (root / "etc/docker/mirror-configure.json").exists()


def test_undo_after_somebody_took_it_back_by_hand(root: Path) -> None:
    """There is nothing left to do but to clear up."""
    start = _tree(root)
    _apply(root)
    (root / _DOCKER).write_text(_BEFORE)
    assert _journal(root).undo() == []
    assert _tree(root) == start


def test_undo_without_its_backup(root: Path) -> None:
    """What the file was is not known any more, so it stays."""
    _apply(root)
    (root / f"{_DOCKER}.before-mirror-{_STAMP}").unlink()
    with pytest.raises(NodeRefused, match="its backup is missing"):
        _journal(root).undo()
    assert "registry-mirrors" in (root / _DOCKER).read_text()


@pytest.mark.parametrize("step", range(1, 7))
def test_a_crash_at_any_step(root: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Whatever rename was the last, the same command goes on, and undo leads back to the files of the start."""
    start = _files(root)
    renames = 0
    rename = Path.rename

    def crashing(path: Path, target: Path) -> Path:
        nonlocal renames
        renames += 1
        if renames == step:
            raise KeyboardInterrupt
        return rename(path, target)

    def both() -> None:
        _apply(root, "http://mirror:5000", "containerd")
        _apply(root, "http://other:5000", "containerd")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", crashing)
        with pytest.raises(KeyboardInterrupt):
            both()
    _apply(root, "http://other:5000", "containerd")
    assert "http://other:5000" in (root / "etc/containerd/certs.d/_default/hosts.toml").read_text()
    _journal(root, "containerd").undo()
    assert _files(root) == start


def test_what_a_crash_left_half_written_goes(root: Path) -> None:
    """Of our files and of their copies; files of others that are called nearly so stay."""
    half = "0123456789abcdef"
    (root / f"etc/docker/.daemon.json.{half}").write_text("{")
    (root / f"etc/docker/.daemon.json.before-mirror-{_STAMP}.{half}").write_text("{")
    (root / "etc/docker/.daemon.json.swp").write_text("")
    _apply(root)
    _journal(root).undo()
    assert sorted(path.name for path in (root / "etc/docker").iterdir()) == [".daemon.json.swp", "daemon.json"]


@pytest.mark.parametrize("text", ["", "[]", '{"files": [{}]}'])
def test_a_damaged_journal(root: Path, text: str) -> None:
    """It is named, and nothing is done."""
    (root / "etc/docker/mirror-configure.json").write_text(text)
    with pytest.raises(NodeRefused, match=r"mirror-configure\.json: cannot be read"):
        _journal(root)


# ---------------------------------------------------------------------------------------------------- what is shown


@pytest.mark.parametrize(
    "line",
    [
        "    Authorization = s3cret",
        '  "password": "s3cret",',
        "      password: s3cret",
        '  endpoint: ["https://me:s3cret@host"]',
        '"registrytoken" : "s3cret"',
        "  identity_token: s3cret",
    ],
)
def test_differences_show_no_secret(line: str) -> None:
    """Neither ours nor those that were there."""
    shown = Difference("/file", "a\n", f"a\n{line}\n").unified()
    assert "s3cret" not in shown
    assert "..." in shown
