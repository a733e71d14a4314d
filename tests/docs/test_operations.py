"""The table of faults is whole, and what it points to is there."""

from __future__ import annotations

import re
from pathlib import Path

_TREE = Path(__file__).resolve().parents[2]
_TEXT = (_TREE / "docs" / "operations.md").read_text()
_ROWS = {int(row[1]): row[0] for row in re.finditer(r"^\| (\d+) \|.*$", _TEXT, re.MULTILINE)}


def test_every_row_is_there_in_order() -> None:
    """Each once, from 1 on, without a gap."""
    numbers = re.findall(r"^\| (\d+) \|", _TEXT, re.MULTILINE)
    assert len(numbers) > 82
    assert numbers == [str(number) for number in range(1, len(numbers) + 1)]


def test_every_test_that_is_named_exists() -> None:
    """A row names tests that are there, or says below the table why it has none."""
    below = _TEXT.partition("## Not held")[2]
    for number, row in _ROWS.items():
        named = re.findall(r"`(\w+/\w+)::(test_\w+)`", row)
        assert named or f"* {number}:" in below, f"row {number} names neither a test nor a reason"
        for file, name in named:
            text = (_TREE / "tests" / f"{file}.py").read_text()
            assert re.search(rf"^\s*(?:async )?def {name}\(", text, re.MULTILINE), f"row {number}: {file}::{name}"
