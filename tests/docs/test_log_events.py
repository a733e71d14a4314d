"""The events of the log: named in one style, and the docs and tests name only events that exist."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

_TREE = Path(__file__).resolve().parents[2]
_LEVELS = {"debug", "info", "warning", "error", "exception"}
#: Parameters that are events.
_EVENTS_OF_ROUNDS = {"failed", "crashed"}


def _calls(tree: ast.AST) -> Iterator[ast.Call]:
    """The calls that write a line to the log. `log` is the logger, or one of its methods chosen by the level."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            written = ast.unparse(node.func)
            prefix, _, method = written.rpartition(".")
            if written == "log" or (prefix.rpartition(".")[2] == "log" and method in _LEVELS):
                yield node


def _of_rounds(tree: ast.AST) -> Iterator[str]:
    """The events that background work gives to `mirror.rounds`, which logs them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg in _EVENTS_OF_ROUNDS and isinstance(node.value, ast.Constant):
            yield str(node.value.value)


@functools.cache
def _events() -> set[str]:
    events: set[str] = set()
    for path in (_TREE / "mirror").rglob("*.py"):
        tree = ast.parse(path.read_text())
        events.update(_of_rounds(tree))
        for call in _calls(tree):
            event = call.args[0]
            if path == _TREE / "mirror" / "rounds.py" and ast.unparse(event) in _EVENTS_OF_ROUNDS:
                continue
            assert isinstance(event, ast.Constant), f"{path.name}:{call.lineno}: an event has no variable parts"
            events.add(str(event.value))
    assert {"eviction crashed", "retention failed"} < events
    assert len(events) > 90
    return events


def test_events_have_one_style() -> None:
    """A few words, the subject first: no articles, and no punctuation. What varies is in the fields."""
    for event in _events():
        assert re.fullmatch(r"[a-zA-Z]+([ -][a-zA-Z]+)*", event), event
        assert event.partition(" ")[0] not in ("a", "an", "the", "could", "not"), event


def test_docs_name_events_that_exist() -> None:
    """Both in the pages' JSON and in the column of the table of faults that shows what an operator sees."""
    for path in [*(_TREE / "docs").rglob("*.md"), *(_TREE / "k8s").rglob("*.yaml")]:
        assert set(re.findall(r'"event":"([^"]+)"', path.read_text())) <= _events(), path.name
    table = (_TREE / "docs" / "operations.md").read_text()
    for row in re.findall(r"^\| \d+ \|.*$", table, re.MULTILINE):
        seen = re.findall(r"`([^`]+)`", row.split(" | ")[3])
        assert {text for text in seen if " " in text} <= _events(), row.split(" | ")[0]


def test_tests_wait_for_events_that_exist() -> None:
    """Otherwise a test that counts no lines of an event could not fail."""
    named = re.compile(
        r"""(?:wait_for_event|_wait_for_another|\.events)\((?:\w+, )?"([^"]+)"|\["event"\] == "([^"]+)\""""
    )
    for path in (_TREE / "tests").rglob("test_*.py"):
        for event in (first or second for first, second in named.findall(path.read_text())):
            assert event in _events() | {"forged", "raw"}, f"{path.name}: {event}"


def test_each_event_has_one_row_at_three_in_the_morning() -> None:
    """Two rows for one event may come to say different things."""
    table = (_TREE / "docs/running.md").read_text().partition("## At three in the morning")[2]
    firsts = re.findall(r"^\| ([^|]*) \|", table, re.MULTILINE)
    assert len(firsts) > 100
    assert sorted({first for first in firsts if firsts.count(first) > 1}) == []
