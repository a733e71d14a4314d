"""Records in a bucket that is in memory, with what one machine remembers of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from mirror.index.record_memory import SqliteRecordMemory
from mirror.ports import RecordMemory
from mirror.store.local.change_files import ChangeFiles
from mirror.store.local.layout import Layout
from mirror.store.objects.record_listing import RecordListing
from mirror.store.objects.record_tree import BucketTree, Reads
from mirror.store.records.json_tree_records import TreeRecords
from mirror.store.records.record_catalog import RecordCatalog
from mirror.store.records.repository_records import RepositoryRecords
from tests.support.memory_bucket import MemoryBucket


@dataclass
class Machine:
    """A machine with a local disk, whose records are in the bucket. `steady` is its clock, in seconds."""

    root: Path
    bucket: MemoryBucket = field(default_factory=MemoryBucket)
    boot: str = "boot 1"
    steady: float = 1000.0

    def __post_init__(self) -> None:
        self.memory = self.another_memory()

    def another_memory(self) -> SqliteRecordMemory:
        """The same memory in another process."""
        return SqliteRecordMemory(self.root / "bucket.sqlite", self.boot, steady=lambda: self.steady)

    def tree(self, reads: Reads = Reads.STRICT, memory: RecordMemory | None = None) -> BucketTree:
        """The records of the bucket, as one process sees them."""
        return BucketTree(self.bucket, memory or self.memory, reads)

    def list_all(self) -> RecordListing:
        """Complete the memory by a listing."""
        listing = RecordListing(self.bucket, self.memory)
        for _ in listing.steps():
            pass
        return listing

    def catalog(self, reads: Reads = Reads.STRICT) -> RecordCatalog:
        """The catalog in another process."""
        return RecordCatalog(self.tree(reads, self.another_memory()))

    def records(self, reads: Reads = Reads.STRICT) -> RepositoryRecords:
        """The records of hosted repositories in another process."""
        return RepositoryRecords(self.tree(reads, self.another_memory()), ChangeFiles(Layout(self.root)))

    def json(self, kind: str, reads: Reads = Reads.STRICT) -> TreeRecords:
        """JSON records in another process."""
        memory = self.another_memory()
        return TreeRecords(self.tree(reads, memory), kind, memory.changes)

    def restart(self, boot: str) -> None:
        """Let the machine start again; its disk is as it was."""
        self.boot = boot
        self.memory.close()
        self.memory = self.another_memory()
