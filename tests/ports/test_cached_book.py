"""The book of the bucket's cache: one SQLite file for all processes of a machine."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from mirror.errors import IndexUnavailable
from mirror.index.cached_book import CachedBook
from mirror.oci.digest import Digest
from mirror.ports import BookedObject, BookedRecord, BookTotals

_DAY = 86400.0
_ONE, _TWO, _THREE = (Digest.of(b"%d" % number) for number in range(3))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Of a file that does not exist yet."""
    return tmp_path / "store" / "bucket-cache.sqlite"


@pytest.fixture
def book(path: Path) -> Iterator[CachedBook]:
    """Empty."""
    with closing(CachedBook(path, "s3://bucket")) as book:
        yield book


def _objects(*digests: Digest, size: int = 10, at: float = 1.0) -> list[BookedObject]:
    return [BookedObject(digest, size, at) for digest in digests]


def test_totals_are_kept(book: CachedBook) -> None:
    """However often an object is entered, and whatever its size was before."""
    assert book.totals() == BookTotals()
    book.put(_objects(_ONE, _TWO))
    book.put(_objects(_TWO, size=30))
    assert book.totals() == BookTotals(2, 40)
    book.drop([_ONE, _THREE])
    assert book.totals() == BookTotals(1, 30)
    assert (book.find(_ONE), book.find(_TWO)) == (None, 30)


def test_uses_are_noted_once_a_day(book: CachedBook) -> None:
    """And those of unknown objects not at all."""
    book.put(_objects(_ONE, at=_DAY))
    book.use({_ONE: 1.5 * _DAY, _TWO: _DAY})
    assert book.coldest(9) == _objects(_ONE, at=_DAY)
    book.use({_ONE: 2.5 * _DAY})
    book.put(_objects(_ONE, at=_DAY))
    assert book.coldest(9) == _objects(_ONE, at=2.5 * _DAY)


def test_the_coldest_come_first(book: CachedBook) -> None:
    """As many as wanted."""
    book.put([BookedObject(_ONE, 1, 3.0), BookedObject(_TWO, 1, 1.0), BookedObject(_THREE, 1, 2.0)])
    assert [each.digest for each in book.coldest(2)] == [_TWO, _THREE]


def test_a_listing_strikes_out_what_it_has_not_seen(book: CachedBook) -> None:
    """But nothing that was entered since it began."""
    book.put(_objects(_ONE, _TWO))
    for key in ("a", "b"):
        book.put_record(key, BookedRecord("mark", 5.0))
    number = book.begin_listing()
    assert book.completed_at() is None
    book.listed(number, _objects(_ONE), ["a", "unknown"])
    book.put(_objects(_THREE))
    book.put_record("c", BookedRecord("mark", 6.0))
    book.end_listing(number, 9.0)
    assert book.completed_at() == 9.0
    assert {each.digest for each in book.coldest(9)} == {_ONE, _THREE}
    assert [key for key in ("a", "b", "c", "unknown") if book.record(key)] == ["a", "c"]
    assert book.record("c") == BookedRecord("mark", 6.0)
    book.drop_records(["c", "d"])
    assert book.record("c") is None


def test_processes_share_it(book: CachedBook, path: Path) -> None:
    """Each sees at once what another has entered."""
    with closing(CachedBook(path, "s3://bucket")) as another:
        another.put(_objects(_ONE))
        assert book.find(_ONE) == 10
        book.drop([_ONE])
        assert another.totals() == BookTotals()


def test_another_bucket_has_another_book(book: CachedBook, path: Path) -> None:
    """What is remembered of the one says nothing of the other."""
    book.put(_objects(_ONE))
    book.close()
    with closing(CachedBook(path, "s3://other")) as other:
        assert other.totals() == BookTotals()


def test_a_file_that_is_lost_or_damaged_is_begun_anew(book: CachedBook, path: Path) -> None:
    """The next call works; what was known comes back with a listing."""
    book.put(_objects(_ONE))
    book.end_listing(book.begin_listing(), 1.0)
    path.unlink()
    assert book.completed_at() is None
    book.put(_objects(_ONE))
    book.close()
    path.write_bytes(b"no database" * 1000)
    with closing(CachedBook(path, "s3://bucket")) as another:
        assert another.totals() == BookTotals()
        another.put(_objects(_TWO))
        assert another.find(_TWO) == 10


def test_a_busy_file_is_no_damage(path: Path) -> None:
    """It says so, and keeps what it has."""
    with closing(CachedBook(path, "s3://bucket", busy_timeout=0.01)) as book:
        book.put(_objects(_ONE))
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(IndexUnavailable, match="locked"):
                book.put(_objects(_TWO))
            assert book.find(_ONE) == 10
            other.execute("ROLLBACK")
        book.put(_objects(_TWO))
        assert book.totals().objects == 2


def test_a_closed_book_says_so(book: CachedBook) -> None:
    """Whoever asks goes on without it."""
    book.close()
    with pytest.raises(IndexUnavailable, match="closed"):
        book.find(_ONE)
