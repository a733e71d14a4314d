"""What the files of the index say of a disk that takes nothing: words, without numbers and paths."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import NoReturn

import pytest

from mirror.errors import IndexUnavailable, StoreError
from mirror.index import embedded, link_ledger, outbox, sorted_tags
from mirror.index.embedded import EmbeddedIndex
from mirror.index.link_ledger import SqliteLedger
from mirror.policy.hosted.quotas import ScopePatterns


def _read_only(*_arguments: object, **_more: object) -> NoReturn:
    raise OSError(errno.EROFS, "Read-only file system", "/the/place")


async def test_the_embedded_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_prepare", _read_only)
    index = EmbeddedIndex(tmp_path / "index.sqlite")
    with pytest.raises(IndexUnavailable, match=r"^the embedded index failed: Read-only file system$"):
        await index.usage()
    await index.aclose()


def test_a_file_that_threads_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_ledger, "_prepare", _read_only)
    ledger = SqliteLedger(tmp_path / "ledger.sqlite", ScopePatterns({}))
    with pytest.raises(IndexUnavailable, match=r" failed: Read-only file system$"):
        ledger.usage("a")
    ledger.close()


def test_the_outbox_and_sorted_tags() -> None:
    error = OSError(errno.EROFS, "Read-only file system", "/the/place")
    assert str(outbox._failed(error)) == "the outbox of events failed: Read-only file system"
    with (
        pytest.raises(StoreError, match=r"^a tag list cannot be sorted: Read-only file system$"),
        sorted_tags._errors(),
    ):
        raise error
