"""The models of hosted content in memory: tests of what uses them rest on their being right."""

from __future__ import annotations

import pytest

from tests.support.hosted_blobs_suite import HostedBlobsSuite
from tests.support.memory_hosting import MemoryContents, MemoryHostedBlobs, MemoryUploads
from tests.support.memory_store import MemoryStore
from tests.support.uploads_suite import UploadsSuite


class TestMemoryHostedBlobs(HostedBlobsSuite):
    """In dicts."""

    @pytest.fixture
    def cache(self) -> MemoryStore:
        """Empty."""
        return MemoryStore()

    @pytest.fixture
    def hosted(self, cache: MemoryStore) -> MemoryHostedBlobs:
        """Of the same disk."""
        return MemoryHostedBlobs(cache)

    @pytest.fixture
    def another(self, hosted: MemoryHostedBlobs) -> MemoryHostedBlobs:
        """All processes see the same dicts."""
        return hosted

    @pytest.fixture
    def contents(self, cache: MemoryStore, hosted: MemoryHostedBlobs) -> MemoryContents:
        """Reads both."""
        return MemoryContents(cache, hosted)


class TestMemoryUploads(UploadsSuite):
    """In dicts."""

    @pytest.fixture
    def hosted(self) -> MemoryHostedBlobs:
        """None yet."""
        return MemoryHostedBlobs(MemoryStore())

    @pytest.fixture
    def uploads(self, hosted: MemoryHostedBlobs) -> MemoryUploads:
        """None yet."""
        return MemoryUploads(hosted)

    @pytest.fixture
    def another(self, uploads: MemoryUploads) -> MemoryUploads:
        """All processes see the same dicts."""
        return uploads

    @pytest.fixture
    def contents(self, hosted: MemoryHostedBlobs) -> MemoryContents:
        """Reads them."""
        return MemoryContents(hosted.cache, hosted)
