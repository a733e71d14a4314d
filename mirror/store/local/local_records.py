"""All records of a store whose records are on the local disk."""

from __future__ import annotations

from mirror.store.local.change_files import ChangeFiles
from mirror.store.local.file_tree import FileTree
from mirror.store.local.json_records import JsonRecords
from mirror.store.local.layout import Layout
from mirror.store.records.freeze_records import FreezeRecords
from mirror.store.records.pin_records import PinRecords
from mirror.store.records.record_catalog import RecordCatalog
from mirror.store.records.repository_records import RepositoryRecords


def local_catalog(layout: Layout) -> RecordCatalog:
    """The tags and manifests of every repository."""
    return RecordCatalog(FileTree(layout))


def local_repository_records(layout: Layout) -> RepositoryRecords:
    """What hosted repositories have besides."""
    return RepositoryRecords(FileTree(layout), ChangeFiles(layout))


def local_pins(layout: Layout) -> PinRecords:
    """The images that must stay."""
    return PinRecords(JsonRecords(layout, "pins"))


def local_freezes(layout: Layout) -> FreezeRecords:
    """The tags that must not move."""
    return FreezeRecords(JsonRecords(layout, "freezes"))
