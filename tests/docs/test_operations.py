"""The table of faults is whole, and what it points to is there."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

_TREE = Path(__file__).resolve().parents[2]
_TEXT = (_TREE / "docs" / "operations.md").read_text()
_ROWS = {int(row[1]): row[0] for row in re.finditer(r"^\| (\d+) \|.*$", _TEXT, re.MULTILINE)}


def test_every_row_is_there_in_order() -> None:
    """Each once and in order, from 1 on. The numbers 111 to 134 are kept for pushes, buckets and replicas, and may be
    missing.
    """
    numbers = [int(number) for number in re.findall(r"^\| (\d+) \|", _TEXT, re.MULTILINE)]
    assert numbers == sorted(set(numbers))
    assert {*range(1, 111), *range(135, max(numbers) + 1)} - set(numbers) == set()
    assert {135, 136, 137, 138} <= set(numbers)


def test_every_test_that_is_named_exists() -> None:
    """A row names tests that are there, or says below the table why it has none."""
    below = _TEXT.partition("## What is not guaranteed")[2]
    for number, row in _ROWS.items():
        named = re.findall(r"`(\w+/\w+)::(test_\w+)`", row)
        assert named or f"* {number}:" in below, f"row {number} names neither a test nor a reason"
        for file, name in named:
            text = (_TREE / "tests" / f"{file}.py").read_text()
            assert re.search(rf"^\s*(?:async )?def {name}\(", text, re.MULTILINE), f"row {number}: {file}::{name}"


def test_no_two_test_files_share_a_name() -> None:
    """Failures, the table and `git log` are read without folders."""
    files = Counter(file.name for file in (_TREE / "tests").rglob("test_*.py"))
    assert [name for name, times in files.items() if times > 1] == []
