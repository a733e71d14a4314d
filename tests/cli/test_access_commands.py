"""`account` and `token`: what they write, what they say, and what they refuse."""

from __future__ import annotations

import io
import json
import os
import sys
import threading
from pathlib import Path

import bcrypt
import pytest

from mirror.access import accounts as accounts_file
from mirror.access.accounts import accounts, set_account
from mirror.access.htpasswd import parse_htpasswd
from mirror.access.robots import ROBOTS, id_of, robots
from mirror.errors import ConfigError, MirrorError
from mirror.store.local.blobs import LocalStore
from mirror.store.local.json_records import JsonRecords
from mirror.store.local.layout import Layout
from tests.support.command import Done, mirror


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hash in a millisecond."""
    monkeypatch.setattr(accounts_file, "_COST", 4)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Of a mirror with a store, an htpasswd file that does not exist yet, and an audit log."""
    root = tmp_path / "store"
    LocalStore(Layout(root))
    file = tmp_path / "mirror.toml"
    file.write_text(
        f'[store]\nroot = "{root}"\n[access]\nhtpasswd = "{tmp_path}/htpasswd"\naudit_log = "{tmp_path}/audit"\n'
        'groups = { ops = ["alice"] }\n'
    )
    return file


def _add(config: Path, name: str, password: str, monkeypatch: pytest.MonkeyPatch) -> Done:
    monkeypatch.setattr(sys, "stdin", io.StringIO(password))
    return mirror("account", "add", name, "--config", config)


def _audit(config: Path) -> list[dict[str, object]]:
    path = config.parent / "audit"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# --------------------------------------------------------------------------------------------------- accounts


def test_an_account_from_the_first_to_the_last(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Added, listed, changed, removed. The file is made with mode 0600, and its hashes are bcrypt."""
    path = config.parent / "htpasswd"
    done = _add(config, "alice", "first\n", monkeypatch)
    assert (done.status, done.out) == (0, f"alice: added to {path}\n"), done
    assert path.stat().st_mode & 0o777 == 0o600
    assert bcrypt.checkpw(b"first", parse_htpasswd(path.read_text())["alice"].encode())
    assert _add(config, "bob", "x", monkeypatch).status == 0
    assert _add(config, "alice", "second", monkeypatch).out == f"alice: password changed in {path}\n"
    assert bcrypt.checkpw(b"second", parse_htpasswd(path.read_text())["alice"].encode())
    listed = mirror("account", "list", "--json", "--config", config).json
    assert listed == [{"name": "alice", "groups": ["ops"]}, {"name": "bob", "groups": []}]
    assert "2 accounts" in mirror("account", "list", "--config", config).out
    assert mirror("account", "remove", "bob", "--config", config).status == 0
    assert mirror("account", "remove", "bob", "--config", config).status == 1
    assert accounts(path) == ["alice"]
    assert [(line["action"], line["account"], line["status"]) for line in _audit(config)] == [
        ("account-add", "alice", 200),
        ("account-add", "bob", 200),
        ("account-add", "alice", 200),
        ("account-remove", "bob", 200),
        ("account-remove", "bob", 500),
    ]
    assert not any(secret in (config.parent / "audit").read_text() for secret in ("first", "second", "$2b$"))


def test_the_first_account_without_a_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is made beside the store, and the command says what to set."""
    root = tmp_path / "store"
    LocalStore(Layout(root))
    file = tmp_path / "mirror.toml"
    file.write_text(f'[store]\nroot = "{root}"\n')
    done = _add(file, "alice", "pw", monkeypatch)
    assert f'[access]\nhtpasswd = "{root}/htpasswd"' in done.out
    assert accounts(root / "htpasswd") == ["alice"]


@pytest.mark.parametrize(
    ("name", "password", "message"),
    [
        ("alice", "", "the password is empty"),
        ("alice", "\n", "the password is empty"),
        ("alice", "a" * 73, "more than 72 bytes"),
        ("alice", "ü" * 37, "more than 72 bytes"),
        ("alice", "one\ntwo", "cannot be typed"),
        ("a:b", "pw", "no colon"),
        ("#a", "pw", "does not begin with #"),
        (" a", "pw", "not the name of an account"),
        ("a\nb", "pw", "not the name of an account"),
        ("", "pw", "not the name of an account"),
    ],
)
def test_what_is_no_account(
    name: str, password: str, message: str, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused with the reason, without the password, and nothing is written."""
    done = _add(config, name, password, monkeypatch)
    assert (done.status, message in done.err) == (2, True), done
    assert not password.strip() or password.strip() not in done.err
    assert not (config.parent / "htpasswd").exists()


def test_a_password_is_typed_twice(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal, without being shown; a typing error changes nothing."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal())
    for typed, status in ((["one", "two"], 2), (["one", "one"], 0)):
        answers = iter(typed)
        monkeypatch.setattr("getpass.getpass", lambda _prompt, answers=answers: next(answers))
        done = mirror("account", "add", "alice", "--config", config)
        assert done.status == status, done
    assert accounts(config.parent / "htpasswd") == ["alice"]


def test_the_rest_of_the_file_stays(tmp_path: Path) -> None:
    """Comments, other accounts, mode, and a link that leads to the file."""
    file, link = tmp_path / "real", tmp_path / "link"
    hashed = bcrypt.hashpw(b"x", bcrypt.gensalt(4)).decode()
    file.write_text(f"# people\n\nbob:{hashed}\nalice:{hashed}\n# end")
    file.chmod(0o640)
    link.symlink_to(file)
    assert not set_account(link, "bob", "other")
    lines = file.read_text().splitlines()
    assert (lines[0], lines[1], lines[3], lines[4]) == ("# people", "", f"alice:{hashed}", "# end")
    assert link.is_symlink()
    assert file.stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


def test_a_file_that_is_not_valid_is_not_touched(tmp_path: Path) -> None:
    """An editing mistake is told, not hidden by a rewrite."""
    path = tmp_path / "htpasswd"
    path.write_text("alice:not-bcrypt\n")
    with pytest.raises(ConfigError, match="line 1"):
        set_account(path, "bob", "pw")
    assert path.read_text() == "alice:not-bcrypt\n"
    with pytest.raises(MirrorError, match="No such file"):
        set_account(tmp_path / "none" / "htpasswd", "bob", "pw")


def test_a_disk_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every step of the write."""
    path = tmp_path / "htpasswd"
    set_account(path, "alice", "pw")
    before = path.read_text()
    for step in ("fchmod", "fsync"):
        with monkeypatch.context() as patched:
            patched.setattr(os, step, _fails)
            with pytest.raises(MirrorError, match="Input/output error"):
                set_account(path, "bob", "pw")
        assert path.read_text() == before
        assert [one.name for one in tmp_path.iterdir()] == ["htpasswd"]


def _fails(*_: object) -> None:
    raise OSError(5, "Input/output error")


def test_many_changes_at_once(tmp_path: Path) -> None:
    """None is lost."""
    path = tmp_path / "htpasswd"
    names = [f"user{number}" for number in range(12)]
    threads = [threading.Thread(target=set_account, args=(path, name, "pw")) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert accounts(path) == sorted(names)


# ----------------------------------------------------------------------------------------------------- robots


@pytest.fixture
def site(config: Path) -> Path:
    """The same with an empty htpasswd file: a configuration that a mirror starts with."""
    (config.parent / "htpasswd").touch()
    return config


def test_a_robot_from_the_first_to_the_last(site: Path) -> None:
    """The secret is shown once; the list says what the robot may do, and until when."""
    done = mirror(
        *("token", "create", "ci", "--allow", "push", "corp/team/**", "--expires", "90d"),
        *("--allow", "pull,delete", "corp/*/x", "--config", site),
    )
    assert done.status == 0, done
    [secret] = [line for line in done.out.splitlines() if line.startswith("mirror_robot_")]
    assert id_of(secret)
    [robot] = robots(JsonRecords(Layout(site.parent / "store"), ROBOTS))
    assert (robot.expires_at or 0) - robot.created_at == 90 * 86400
    listed = mirror("token", "list", "--json", "--config", site)
    [row] = listed.json
    assert row["allow"] == [
        {"actions": ["push"], "repositories": ["corp/team/**"]},
        {"actions": ["pull", "delete"], "repositories": ["corp/*/x"]},
    ]
    assert (row["name"], row["expired"], row["used_at"]) == ("ci", False, None)
    shown = listed.out + mirror("token", "list", "--config", site).out + (site.parent / "audit").read_text()
    assert "corp/team/**" in shown
    assert secret not in shown
    assert robot.secret_hash not in shown
    assert mirror("token", "revoke", "ci", "--config", site).out == "ci: revoked\n"
    assert mirror("token", "revoke", "ci", "--config", site).status == 1
    assert mirror("token", "list", "--json", "--config", site).json == []
    assert [(line["action"], line["robot"], line["status"]) for line in _audit(site)] == [
        ("token-create", "ci", 200),
        ("token-revoke", "ci", 200),
        ("token-revoke", "ci", 500),
    ]


def test_the_name_may_stand_anywhere(site: Path) -> None:
    """Before, between or behind the entries of the list."""
    for number, words in enumerate(
        [
            ["n0", "--allow", "push", "corp/a"],
            ["--allow", "push", "corp/a", "n1"],
            ["--allow", "push", "corp/a", "n2", "--allow", "pull", "**"],
        ]
    ):
        done = mirror("token", "create", *words, "--expires", "never", "--json", "--config", site)
        assert done.json["name"] == f"n{number}"
        assert done.json["expires_at"] is None
        assert done.json["allow"][0] == {"actions": ["push"], "repositories": ["corp/a"]}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["create"], "needs the name of one robot"),
        (["create", "a", "b", "--allow", "push", "corp/**"], "needs the name of one robot"),
        (["create", "a"], "needs at least one --allow"),
        (["create", "a", "--allow", "push"], "each --allow needs one pattern: 1 × --allow, 0 patterns"),
        (["create", "a", "corp/**"], "needs at least one --allow"),
        (["create", "a", "--allow", "create", "corp/**"], "'create' is none of delete"),
        (["create", "a", "--allow", "admin", "**"], "'admin' is none of"),
        (["create", "a", "--allow", "push,", "**"], "'' is none of"),
        (["create", "a", "--allow", "push", "*"], "matches nothing"),
        (["create", "A", "--allow", "push", "**"], "not the name of a robot"),
        (["create", "a", "--allow", "push", "**", "--expires", "soon"], "not a date, time or duration"),
        (["create", "a", "--allow", "push", "**", "--expires", "2020-01-01"], "in the past"),
        (["revoke"], "needs the name of one robot"),
        (["revoke", "a", "--allow", "push"], "takes no --allow"),
        (["list", "a"], "takes no name"),
        (["show"], "show"),
    ],
)
def test_what_is_no_robot(words: list[str], message: str, site: Path) -> None:
    """Refused with the reason; nothing is written."""
    done = mirror("token", *words, "--config", site)
    assert (done.status, message in done.err) == (2, True), done
    assert robots(JsonRecords(Layout(site.parent / "store"), ROBOTS)) == []


def test_a_robot_whose_record_is_damaged_is_told(site: Path) -> None:
    """After the list, and the command fails: the list is not complete."""
    for name in ("good", "bad"):
        mirror("token", "create", name, "--allow", "push", "corp/**", "--config", site)
    records = JsonRecords(Layout(site.parent / "store"), ROBOTS)
    [bad] = [robot for robot in robots(records) if robot.name == "bad"]
    file = records._path(bad.id)
    file.write_text(file.read_text()[:-20])
    done = mirror("token", "list", "--config", site)
    assert (done.status, "good" in done.out, str(file) in done.err) == (1, True, True), done
