"""The `mirror` command imports the file that has the command it is given, and little else."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer

from mirror import __version__
from mirror.cli import COMMANDS, every_command
from tests.support.command import mirror

_TREE = Path(__file__).parents[2]
_HEAVY = ("aiohttp", "redis", "aiocache", "yaml", "mirror.aio.memo", "mirror.server")


def test_the_table_tells_which_file_has_which_command() -> None:
    """Each command of the application stands in it once, with the file that defines it; no file is left out."""
    found = {
        (one.name or one.callback.__name__, one.callback.__module__)
        for one in every_command().registered_commands
        if one.callback is not None
    }
    assert found == {(name, f"mirror.cli.{file}") for file, names in COMMANDS.items() for name in names}
    folder = _TREE / "mirror/cli"
    with_commands = [path for path in folder.rglob("*.py") if "@application.command" in path.read_text()]
    files = {".".join(path.relative_to(folder).with_suffix("").parts) for path in with_commands}
    assert files == COMMANDS.keys()
    assert all(import_module(f"mirror.cli.{file}") for file in files)


@pytest.mark.parametrize("words", [["check"], ["serve", "--workers", "0"], ["status"], ["why", "app"], ["evict"]])
def test_a_command_loads_what_it_needs(words: list[str], tmp_path: Path) -> None:
    """The configuration and the disk are read without what only a server and a client of registries need."""
    program = (
        "import sys; from mirror.cli import main\n"
        "try: main()\n"
        f"finally: print(*[name for name in {_HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        cwd=_TREE,
        env={**os.environ, "MIRROR__STORE__ROOT": str(tmp_path / "store")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr.splitlines()[-1] == "", done


def test_a_worker_loads_what_it_needs() -> None:
    """Libraries of Redis, buckets and traces are loaded by the workers that use them: they make a start slower."""
    program = (
        "import sys, mirror.cli.serving, mirror.process.worker\n"
        "libraries = {name.partition('.')[0] for name in sys.modules}\n"
        "print(*libraries & {'aiocache', 'redis', 'hiredis', 'obstore', 'opentelemetry', 'botocore', 'google'})"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=_TREE, capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


@pytest.mark.parametrize("name", [name for names in COMMANDS.values() for name in names])
def test_the_help_of_every_command(name: str) -> None:
    """It ends well, and says what the source says: names, options and texts with brackets too."""
    command: Any = typer.main.get_command(every_command())
    command = command.commands[name]
    assert not hasattr(command, "commands"), "its commands have help of their own"
    done = mirror(name, "--help")
    assert (done.status, done.err) == (0, "")
    shown = "".join(done.out.split())
    for parameter in command.params:
        for text in (parameter.help or "", *parameter.opts[:1] * (parameter.param_type_name == "option")):
            assert "".join(text.split()) in shown


def test_words_that_look_like_markup() -> None:
    """What is typed is told back as it was typed."""
    done = mirror("ls", "[/x]", "[bold]y")
    assert (done.status, "[bold]y" in done.err) == (2, True), done


def test_all_commands_are_listed() -> None:
    """By `--help` and where a command is not known."""
    names = [name for names in COMMANDS.values() for name in names if name != "worker"]
    done = subprocess.run(
        [sys.executable, "-m", "mirror", "--help"], cwd=_TREE, capture_output=True, text=True, check=True
    )
    listed = [line.split()[0] for line in done.stdout.partition("Commands:")[2].splitlines() if line.strip()]
    assert [name for name in listed if name in names] == names
    done = subprocess.run(
        [sys.executable, "-m", "mirror", "serv"], cwd=_TREE, capture_output=True, text=True, check=False
    )
    assert (done.returncode, "serve" in done.stderr) == (2, True), done.stderr


def test_no_cycles_are_looked_for_while_a_command_is_imported() -> None:
    """All that is made then stays; the command itself has its cycles collected again."""
    program = (
        "import atexit, gc, runpy\n"
        "began = []\n"
        "gc.callbacks.append(lambda phase, info: began.append(phase))\n"
        "atexit.register(lambda: print(gc.isenabled(), len(began)))\n"
        "runpy.run_module('mirror', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "--version"], cwd=_TREE, capture_output=True, text=True, check=True
    )
    is_on, began = done.stdout.splitlines()[-1].split()
    # imported with it, there are hundreds
    assert (is_on, int(began) < 50) == ("True", True)


def test_the_version_needs_no_command() -> None:
    """Nor the settings of any."""
    program = (
        "import sys; from mirror.cli import main\n"
        "try: main()\n"
        "finally: print(*[name for name in sys.modules if name.startswith('mirror.app')], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "--version"], cwd=_TREE, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == (f"{__version__}\n", "\n")


def test_the_end_does_not_look_at_what_was_imported() -> None:
    """A command's process ends without a search for cycles in all of its modules; one that is run within ours does."""
    program = (
        "import atexit, gc, runpy\n"
        "atexit.register(lambda: print(gc.get_freeze_count() > 10_000))\n"
        "runpy.run_module('mirror', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "--version"], cwd=_TREE, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "True"


def test_status_says_what_is_not_known_and_when_an_upstream_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In whole sentences, with the command that says more."""
    config = tmp_path / "mirror.toml"
    config.write_text(f'[store]\nroot = "{tmp_path / "store"}"\n')
    store = {"root": "x", "bytes": 1, "limit": 2, "quarantine_bytes": 0, "hosted_damaged": 0, "failing_workers": 0}
    usage = [{"scope": "corp", "bytes": None, "quota": None}, {"scope": "own", "bytes": None, "quota": 2000}]
    address = {"retry_in": 3.4, "credentials": None, "reason": "no connection to a.test: Connection refused"}
    down = {"name": "a.test", "state": "down", "endpoints": [address], "budget": None}
    # of an earlier version, which does not say why
    failing = {
        "name": "b.test",
        "state": "failing",
        "endpoints": [{"retry_in": 0, "credentials": None}],
        "budget": None,
    }
    status = {"version": "1", "worker": 1, "offline": False, "workers": [], "store": store, "hosted": usage}
    answers: dict[str, Any] = {
        "status": status,
        "flights": {"flights": []},
        "upstreams": {"upstreams": [down, failing]},
        "events?limit=1": {"endpoints": []},
        "replication": {"rules": []},
        "retention": {"last": None},
    }

    def answered(_config: object, _method: str, target: str) -> Any:
        return dict(answers[target.removeprefix("/admin/v1/")])

    monkeypatch.setattr("mirror.cli.status.ask_if_running", answered)
    monkeypatch.setattr("mirror.cli.status.ask", answered)
    lines = mirror("status", "--config", config).out.splitlines()
    assert [line for line in lines if line.startswith(("hosted:", "upstream:"))] == [
        "hosted:    how much corp has is not known",
        "hosted:    how much own has of 2 kB is not known",
        "upstream:  a.test is down: no connection to a.test: Connection refused; it is asked again in 3 s; "
        "`mirror check --online` asks it now",
        "upstream:  b.test is failing; the next request asks it again; `mirror check --online` asks it now",
    ]


def test_status_says_what_of_events_replication_and_retention_needs_a_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in order has no line."""
    secret = tmp_path / "secret"
    secret.write_text("secret")
    config = tmp_path / "mirror.toml"
    config.write_text(
        f"""
default_registry = "corp"
[store]
root = "{tmp_path / "store"}"
[[hosted]]
name = "corp"
[[hosted.retention]]
repositories = ["**"]
keep = [{{ tags = ["v*"], newest = 1 }}]
delete = [{{ tags = ["v*"] }}]
[[events.endpoint]]
name = "ci"
url = "https://ci.example.test/"
[[upstream]]
name = "b.example.test"
push = true
username = "a"
password_file = "{secret}"
[[replication]]
name = "to-b"
from = "corp/**"
to = "b.example.test"
"""
    )
    endpoint = {"endpoint": "ci", "configured": True, "waiting": 0, "dead": 0, "lost": 0, "oldest": None}
    rule: dict[str, Any] = {"name": "to-b", "state": "ok", "result": {"conflict_count": 0, "failure_count": 0}}
    last: dict[str, Any] = {"unread_count": 0, "complete": True, "begun": "2026-03-01T03:00:00Z", "ended": "x"}
    store = {"root": "x", "bytes": 1, "limit": 2, "quarantine_bytes": 0, "hosted_damaged": 0, "failing_workers": 0}
    answers: dict[str, Any] = {
        "status": {"version": "1", "worker": 1, "offline": False, "workers": [], "store": store},
        "flights": {"flights": []},
        "upstreams": {"upstreams": []},
        "events?limit=1": {"endpoints": [endpoint]},
        "replication": {"rules": [rule]},
        "retention": {"last": last},
    }

    def answered(_config: object, _method: str, target: str) -> Any:
        return dict(answers[target.removeprefix("/admin/v1/")])

    monkeypatch.setattr("mirror.cli.status.ask_if_running", answered)
    monkeypatch.setattr("mirror.cli.status.ask", answered)

    def lines() -> list[str]:
        done = mirror("status", "--config", config)
        assert done.status == 0, done
        named = ("events:", "replicate:", "retention:")
        return [line for line in done.out.splitlines() if line.startswith(named)]

    assert lines() == []
    endpoint |= {"waiting": 3, "dead": 1, "oldest": "2026-03-01T12:30:05Z"}
    rule["result"] = {"conflict_count": 2, "failure_count": 0, "held_back": 60}
    last["unread_count"] = 1
    assert lines() == [
        "retention: 1 repository left alone, because of what cannot be read: see `mirror retention --dry-run`",
        "events:    for ci 3 wait since 2026-03-01T12:30:05Z, 1 dead: see `mirror events`",
        "replicate: to-b: 2 in conflict, 60 held back: see `mirror replicate`",
    ]
    rule |= {"state": "failed", "result": {"error": "no connection"}}
    last |= {"unread_count": 0, "complete": False}
    assert lines()[0] == "retention: the round of 2026-03-01T03:00:00Z ended early: see `mirror retention --dry-run`"
    assert lines()[2] == "replicate: to-b: no connection: see `mirror replicate`"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["events", "resnd"], "'[ACTION]': 'resnd' is not one of 'list', 'resend'"),
        (["ls", "--limit", "0"], "'--limit': must be 1 or more"),
        (["ls", "--limit", "many"], "'--limit': must be a whole number"),
        (["prefetch", "app", "--concurrency", "257"], "'--concurrency': must be 256 or less"),
    ],
)
def test_a_wrong_argument_is_told_as_a_wrong_setting_is(words: list[str], said: str) -> None:
    done = mirror(*words)
    assert (done.status, f"Error: Invalid value for {said}" in done.err) == (2, True), done
