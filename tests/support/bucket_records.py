"""Records in a bucket that is in memory, with what one machine remembers of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from mirror.errors import StoreError
from mirror.index.journal_memory import SqliteJournalMemory
from mirror.index.record_memory import SqliteRecordMemory
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.records import ManifestRecord, TagRecord
from mirror.ports import RecordMemory, Versioned
from mirror.store.local.change_files import ChangeFiles
from mirror.store.local.layout import Layout
from mirror.store.objects.record_journals import BucketJournals
from mirror.store.objects.record_listing import RecordListing
from mirror.store.objects.record_tree import BucketTree, Reads
from mirror.store.records.json_tree_records import TreeRecords
from mirror.store.records.record_catalog import RecordCatalog
from mirror.store.records.repository_records import RepositoryRecords
from tests.support.memory_bucket import MemoryBucket


class UnreliableRecords(RecordCatalog):
    """A catalog whose records cannot be read if the test says so, like `UnreliableCatalog`."""

    def __init__(self, tree: BucketTree) -> None:
        super().__init__(tree)
        #: A repository, with a digest or a tag.
        self.unreadable: set[tuple[Repo, Digest | str]] = set()

    def pointed(self, repo: Repo, tag: str) -> Digest | None:
        """The digest that a tag points to, even if the record cannot be read."""
        found = super().tag(repo, tag)
        return found.record.digest if found else None

    def tag(self, repo: Repo, tag: str) -> Versioned[TagRecord] | None:
        self._check(repo, tag)
        return super().tag(repo, tag)

    def manifest(self, repo: Repo, digest: Digest) -> Versioned[ManifestRecord] | None:
        self._check(repo, digest)
        return super().manifest(repo, digest)

    def _check(self, repo: Repo, what: Digest | str) -> None:
        if (repo, what) in self.unreadable:
            raise StoreError(f"the record of {repo} {what} cannot be read")


@dataclass
class Machine:
    """A machine with a local disk, whose records are in the bucket. `steady` is its clock, in seconds. One with a
    `replica` is that replica of a cluster.
    """

    root: Path
    bucket: MemoryBucket = field(default_factory=MemoryBucket)
    boot: str = "boot 1"
    steady: float = 1000.0
    replica: str = ""

    def __post_init__(self) -> None:
        self.memory = self.another_memory()
        #: Repositories that others have changed, as this machine has noticed.
        self.changed: list[Repo] = []

    def journals(self, *, freshness: float = 0.0) -> BucketJournals | None:
        """The journals as another process of a replica sees them; None if this machine is none. Entries end when the
        test says so: `settle`.
        """
        if not self.replica:
            return None
        path, clock = self.root / "bucket.sqlite", lambda: self.steady
        memory = SqliteJournalMemory(path, self.boot, self.replica, steady=clock)
        return BucketJournals(
            self.bucket,
            memory,
            self.replica,
            self.changed.append,
            freshness=freshness,
            ends=False,
            steady=clock,
            pause=lambda _: None,
        )

    def settle(self) -> None:
        """Let the replica name what it has written, some seconds later."""
        self.steady += 3.0
        journals = self.journals()
        assert journals
        assert journals.settle_all()

    def another_memory(self) -> SqliteRecordMemory:
        """The same memory in another process."""
        return SqliteRecordMemory(self.root / "bucket.sqlite", self.boot, steady=lambda: self.steady)

    def tree(self, reads: Reads = Reads.STRICT, memory: RecordMemory | None = None) -> BucketTree:
        """The records of the bucket, as one process sees them."""
        return BucketTree(self.bucket, memory or self.memory, reads, journals=self.journals())

    def list_all(self) -> RecordListing:
        """Complete the memory by a listing."""
        listing = RecordListing(self.bucket, self.memory)
        for _ in listing.steps():
            pass
        return listing

    def catalog(self, reads: Reads = Reads.STRICT) -> UnreliableRecords:
        """The catalog in another process."""
        return UnreliableRecords(self.tree(reads, self.another_memory()))

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
