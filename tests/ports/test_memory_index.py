"""The index in dicts."""

from __future__ import annotations

import pytest

from mirror.ports import ContentIndex
from tests.support.index_suite import IndexSuite
from tests.support.memory_index import MemoryIndex


class TestMemoryIndex(IndexSuite):
    """The simplest one passes the suite that it is the model of."""

    @pytest.fixture
    def index(self) -> ContentIndex:
        """Empty."""
        return MemoryIndex()

    @pytest.fixture
    def another(self, index: ContentIndex) -> ContentIndex:
        """Nobody else can have the same data."""
        return index
