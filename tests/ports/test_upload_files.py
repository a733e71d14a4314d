"""Upload sessions as files."""

from __future__ import annotations

from pathlib import Path

import pytest

from mirror.store.hosted.blob_names import HostedNames
from mirror.store.hosted.contents import LocalContents
from mirror.store.hosted.upload_files import LocalUploads
from mirror.store.local.blobs import LocalStore
from mirror.store.local.layout import Layout
from tests.support.uploads_suite import UploadsSuite


class TestLocalUploads(UploadsSuite):
    """The disk behaves like the model in memory."""

    @pytest.fixture
    def layout(self, tmp_path: Path) -> Layout:
        """Of an empty store."""
        return LocalStore(Layout(tmp_path)).layout

    @pytest.fixture
    def hosted(self, layout: Layout) -> HostedNames:
        """None yet."""
        return HostedNames(layout)

    @pytest.fixture
    def uploads(self, layout: Layout, hosted: HostedNames) -> LocalUploads:
        """None yet."""
        return LocalUploads(layout, hosted)

    @pytest.fixture
    def another(self, layout: Layout) -> LocalUploads:
        """Another process's view: it shares nothing but files."""
        return LocalUploads(layout, HostedNames(layout))

    @pytest.fixture
    def contents(self, layout: Layout) -> LocalContents:
        """Reads the blobs."""
        return LocalContents(layout)
