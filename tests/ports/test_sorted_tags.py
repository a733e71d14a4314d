"""Tag lists that are sorted on disk."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from mirror.errors import StoreError, StoreFull
from mirror.index.sorted_tags import LocalSortedTags
from mirror.ports import TagBatch, TagGathering
from tests.support.clock import Clock

_TAGS = [f"v{number:05}" for number in range(20_000)]


@pytest.fixture
def lists(tmp_path: Path, clock: Clock) -> LocalSortedTags:
    return LocalSortedTags(tmp_path / "lists", 4 << 20, clock)


def _gather(lists: LocalSortedTags, key: str, tags: list[str], until: float) -> None:
    gathering = lists.gather(key)
    try:
        for start in range(0, len(tags), 3_000):
            gathering.add(tags[start : start + 3_000])
        gathering.publish(until)
    finally:
        gathering.close()
        gathering.close()


def test_pages(lists: LocalSortedTags, clock: Clock) -> None:
    """In the order of bytes, each tag once; `last` need not be one of them."""
    tags = ["B", "a", "_", "10", "9", "a", "B-1", "B.1", "zz"]
    _gather(lists, "x", tags, clock() + 60)
    assert lists.page("x", "", 100) == TagBatch(tuple(sorted(set(tags))), False)
    assert lists.page("x", "", 2) == TagBatch(("10", "9"), True)
    assert lists.page("x", "9z", 2) == TagBatch(("B", "B-1"), True)
    assert lists.page("x", "a", 1) == TagBatch(("zz",), False)
    assert lists.page("x", "zz", 5) == TagBatch((), False)
    assert lists.page("x", "", 0) == TagBatch((), True)
    assert lists.page("y", "", 5) is None


def test_a_long_list(lists: LocalSortedTags, clock: Clock) -> None:
    """Counted while it is gathered, invisible until it is published."""
    shuffled = random.Random(3).sample(_TAGS, len(_TAGS))
    gathering = lists.gather("x")
    gathering.add(shuffled[:15_000])
    gathering.add(shuffled[10_000:])
    assert gathering.count == len(_TAGS)
    assert gathering.size > 100_000
    assert lists.page("x", "", 5) is None
    gathering.publish(clock() + 60)
    gathering.close()
    found: list[str] = []
    while (page := lists.page("x", found[-1] if found else "", 7_000)) and page.tags:
        found += page.tags
    assert found == _TAGS


def test_its_time(lists: LocalSortedTags, clock: Clock) -> None:
    """Believed until its time is over, and not after the clock was put back far."""
    _gather(lists, "x", ["a"], clock() + 60)
    clock.time += 59
    assert lists.page("x", "", 5)
    clock.time += 1
    assert lists.page("x", "", 5) is None
    _gather(lists, "x", ["b"], clock() + 60)
    assert lists.page("x", "", 5) == TagBatch(("b",), False)
    clock.time -= 3_600
    assert lists.page("x", "", 5) is None


def test_room(clock: Clock, tmp_path: Path) -> None:
    """Older lists make room for newer ones; what a process that died has left goes after a while, what grows stays."""
    lists = LocalSortedTags(tmp_path / "lists", 1 << 20, clock)
    for number in range(12):
        _gather(lists, str(number), [f"{number}-{tag}" for tag in _TAGS], clock() + 60)
        [newest] = [path for path in (tmp_path / "lists").iterdir() if path.stat().st_mtime > 1e9]
        os.utime(newest, (number, number))
    held = sum(path.stat().st_size for path in (tmp_path / "lists").iterdir())
    assert held <= lists.most_bytes + 1_000_000
    assert lists.page("0", "", 1) is None
    assert lists.page("11", "", 1)
    left, growing = tmp_path / "lists" / "x.0.part", tmp_path / "lists" / "y.0.part"
    left.write_bytes(b"x")
    growing.write_bytes(b"y")
    os.utime(left, (1, 1))
    _gather(lists, "z", ["a"], clock() + 60)
    assert not left.exists()
    assert growing.exists()


def _fill(growing: Sequence[TagGathering]) -> None:
    for gathering in growing:
        gathering.add(_TAGS)


def test_lists_that_grow_at_once(clock: Clock, tmp_path: Path) -> None:
    """All of them together are within the limit; the one that would go beyond it is refused."""
    lists = LocalSortedTags(tmp_path / "lists", 1 << 20, clock)
    growing = [lists.gather(str(number)) for number in range(5)]
    for gathering in growing[:2]:
        gathering.add(_TAGS)
    with pytest.raises(StoreFull):
        _fill(growing[2:])
    for gathering in growing:
        gathering.close()
    assert list((tmp_path / "lists").iterdir()) == []


def test_what_is_not_published(lists: LocalSortedTags, tmp_path: Path) -> None:
    """It leaves nothing behind."""
    gathering = lists.gather("x")
    gathering.add(["a"])
    gathering.close()
    assert list((tmp_path / "lists").iterdir()) == []


def test_damage(lists: LocalSortedTags, clock: Clock, tmp_path: Path) -> None:
    """A file that is none is no list, and is replaced."""
    _gather(lists, "x", _TAGS, clock() + 60)
    [path] = (tmp_path / "lists").iterdir()
    for damaged in (b"", b"not a database", path.read_bytes()[:5_000]):
        path.write_bytes(damaged)
        assert lists.page("x", "", 5) is None
    _gather(lists, "x", ["a"], clock() + 60)
    assert lists.page("x", "", 5) == TagBatch(("a",), False)


def test_a_folder_that_cannot_be_made(clock: Clock, tmp_path: Path) -> None:
    """`StoreError`; nothing is here."""
    (tmp_path / "lists").write_bytes(b"")
    lists = LocalSortedTags(tmp_path / "lists", 1 << 20, clock)
    with pytest.raises(StoreError):
        lists.gather("x")
    assert lists.page("x", "", 5) is None


def test_two_at_once(lists: LocalSortedTags, clock: Clock) -> None:
    """Both are whole; the later one is found."""
    threads = [
        threading.Thread(target=_gather, args=(lists, "x", random.Random(seed).sample(_TAGS, 20_000), clock() + 60))
        for seed in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    page = lists.page("x", "", 20_000)
    assert page is not None
    assert list(page.tags) == _TAGS
