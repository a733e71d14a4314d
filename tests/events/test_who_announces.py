"""Whoever changes the tags and manifests of hosted repositories announces it: a new writer is noticed here."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Final

_ROOT: Final = Path(__file__).resolve().parents[2] / "mirror"
_WRITES: Final = frozenset({"put_tag", "drop_tag", "put_manifest", "drop_manifest"})

#: Functions that write such a record, by file. They are inside of an announcement, or readers see no change.
_KNOWN: Final = {
    "collection/repository_pass.py": {
        "_bring_back": "announced by those who call it",
        "_drop_referrer": "announces",
        "_drop_tags": "ends a deletion that was announced: its tags count as absent already",
        "_live": "writes a damaged record anew",
    },
    "hosting/deleting.py": {
        "delete_manifest": "announces",
        "delete_tag": "announces",
        "undelete_manifest": "announces",
        "_drop_tags": "part of delete_manifest: the tags count as absent already",
        "drop_stale_tags": "before a push: the tags count as absent already",
    },
    "hosting/placing.py": {
        "put_manifest": "announced by those who call it",
        "_put_tag": "announced by those who call it",
        "_confirm": "writes the same record anew, so that a deletion looks again",
        "check_still_there": "takes back what the caller has written and announced",
    },
    "hosting/pushing.py": {"_store": "announced by `put`"},
    "hosting/retiring.py": {
        "drop_manifests": "announces",
        "drop_tags": "announces",
        "_bring_back": "takes back what was announced",
    },
}


def _writers(file: Path) -> set[str]:
    """The innermost functions of a file that call a method which writes such a record."""
    found = set()
    for function in ast.walk(ast.parse(file.read_text())):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            calls = [
                node.func
                for node in ast.walk(function)
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
            ]
            if any(call.attr in _WRITES for call in calls):
                found.add(function.name)
    return found


def test_every_writer_is_known() -> None:
    """Of hosting and collection, by name; what is announced by whom stands in the table above."""
    files = [*(_ROOT / "hosting").glob("*.py"), *(_ROOT / "collection").glob("*.py")]
    found = {str(file.relative_to(_ROOT)): writers for file in files if (writers := _writers(file))}
    assert found == {file: set(writers) for file, writers in _KNOWN.items()}


def test_those_who_announce_do_so() -> None:
    """They, or what they call, begin an announcement."""
    for file, writers in _KNOWN.items():
        text = (_ROOT / file).read_text()
        if "announces" in writers.values():
            assert "events.begin(" in text or "change.announce(" in text, file
