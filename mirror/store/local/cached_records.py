"""The records of cached repositories on the disk, for whoever forgets old ones.

Repositories of hosted registries are in the same tree (`layout.py`); whoever asks must leave them alone. A registry may
have been hosted once and be an upstream's now: `is_hosted` sees it by the folders.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from mirror.oci.reference import Repo
from mirror.store.local.file_tree import FileTree
from mirror.store.local.layout import Layout
from mirror.store.records.record_catalog import RecordCatalog
from mirror.store.records.record_keys import LISTED

#: The folders of a cached repository, and those that only hosted ones have.
_CACHED: Final = (*LISTED, "_history")
_HOSTED: Final = ("_blobs", "_referrers", "_deleted", "_deleted_tags")


class LocalCachedRecords(RecordCatalog):
    """`CachedRecords` of one disk. May be used from any thread."""

    def __init__(self, layout: Layout) -> None:
        self._files = FileTree(layout)
        super().__init__(self._files)

    def __repr__(self) -> str:
        return f"<LocalCachedRecords in {self._files!r}>"

    def known(self) -> Iterable[Repo]:
        return self._files.repositories(_CACHED, had=True)

    def is_hosted(self, repo: Repo) -> bool:
        return any(True for _ in self._files.had(repo, _HOSTED))

    def prune(self, repo: Repo) -> bool:
        return self._files.prune(repo, _CACHED)
