"""Hosted blobs and upload sessions on the local disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from mirror.store.hosted.blob_names import HostedNames
from mirror.store.hosted.contents import LocalContents
from mirror.store.local.blobs import LocalStore
from mirror.store.local.layout import Layout
from tests.support.hosted_blobs_suite import CONTENT, DIGEST, HostedBlobsSuite


class TestHostedNames(HostedBlobsSuite):
    """The disk behaves like the model in memory."""

    @pytest.fixture
    def cache(self, tmp_path: Path) -> LocalStore:
        """Empty."""
        return LocalStore(Layout(tmp_path))

    @pytest.fixture
    def hosted(self, cache: LocalStore) -> HostedNames:
        """On the same disk."""
        return HostedNames(cache.layout)

    @pytest.fixture
    def another(self, cache: LocalStore) -> HostedNames:
        """Another process's view: it shares nothing but files."""
        return HostedNames(cache.layout)

    @pytest.fixture
    def contents(self, cache: LocalStore) -> LocalContents:
        """Reads both names."""
        return LocalContents(cache.layout)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """Of an empty store."""
    return LocalStore(Layout(tmp_path)).layout


@pytest.fixture
def hosted(layout: Layout) -> HostedNames:
    """Without a blob."""
    return HostedNames(layout)


def test_an_adopted_blob_is_one_file(layout: Layout, hosted: HostedNames) -> None:
    """It takes the room of one, and nobody writes to it by mistake."""
    LocalStore(layout).put(DIGEST, CONTENT)
    hosted.adopt(DIGEST)
    status = Path(layout.hosted_blob(DIGEST)).stat()
    assert (status.st_nlink, status.st_mode & 0o777) == (2, 0o400)
    assert Path(layout.blob(DIGEST)).samefile(layout.hosted_blob(DIGEST))


def test_a_store_that_hosts_nothing_has_no_folders_for_it(layout: Layout, hosted: HostedNames) -> None:
    """They are made when they are needed."""
    assert not [*hosted.blobs(None, 10), *hosted.all_queued()]
    assert not [path for path in (layout.hosted, layout.hosted_queue, layout.uploads) if path.exists()]
