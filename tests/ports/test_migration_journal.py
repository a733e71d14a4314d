"""The journal of a migration: it outlives its process, and is of one pair of stores."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from mirror.errors import IndexUnavailable
from mirror.index.migration_journal import SqliteMigrationJournal
from mirror.policy.hosted.migration_steps import DELETED, Written


def opened(tmp_path: Path, stores: str = "a b") -> SqliteMigrationJournal:
    """Another process opens it."""
    return SqliteMigrationJournal(tmp_path / "migration.sqlite", stores)


def test_what_was_noted_is_there_in_the_next_process(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.begin({"r/app/_tags/v1": "1", "r/app/_tags/v2": "1", "r/app/_tags/v3": "1"})
    journal.done({"r/app/_tags/v1": "1", "r/app/_tags/v2": "1"})
    journal.begin({"r/app/_tags/v2": "2", "r/app/_tags/v1": DELETED})
    journal.done({"r/apple/_tags/v1": "1", "r/app/nested/_tags/v1": "1"})
    # no close: the process was killed
    assert opened(tmp_path).written("r/app/_") == {
        "r/app/_tags/v1": Written("1", DELETED),
        "r/app/_tags/v2": Written("1", "2"),
        "r/app/_tags/v3": Written(None, "1"),
    }


def test_what_neither_side_has_is_forgotten(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.done({"pins/a": "1", "pins/b": "1"})
    journal.forget(["pins/a", "pins/unknown"])
    assert journal.written("pins/") == {"pins/b": Written("1")}


def test_each_pair_of_stores_has_its_own(tmp_path: Path) -> None:
    opened(tmp_path).done({"pins/a": "1"})
    other = opened(tmp_path, "a c")
    assert other.written("pins/") == {}
    other.done({"pins/a": "2"})
    other.forget(["pins/b"])
    assert opened(tmp_path).written("pins/") == {"pins/a": Written("1")}
    assert opened(tmp_path, "a c").written("pins/") == {"pins/a": Written("2")}


def test_the_file_of_another_version_is_refused_and_a_damaged_one_reported(tmp_path: Path) -> None:
    opened(tmp_path).close()
    with sqlite3.connect(tmp_path / "migration.sqlite") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(IndexUnavailable, match="another version"):
        opened(tmp_path)
    (tmp_path / "migration.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(IndexUnavailable, match=r"migration\.sqlite"):
        opened(tmp_path)
