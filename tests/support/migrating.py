"""Two sides of a migration, a disk and a bucket in memory, on which images are pushed and deleted as clients do it.

The bytes of both sides are in memory, the records in the real trees.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mirror.errors import BlobDamaged, BlobUnknown
from mirror.index.migration_journal import SqliteMigrationJournal
from mirror.migration.migration import Migration, MigrationOptions
from mirror.migration.progress import MigrationProgress, MigrationReport
from mirror.migration.record_folders import FOLDERS, MigrationSide, folders_of
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_MANIFEST, Descriptor
from mirror.oci.reference import Repo
from mirror.policy.hosted_records import BlobLink, DeletedManifest, DeletedTag, LinkState
from mirror.policy.records import ManifestRecord, Sighting, TagRecord
from mirror.ports import RecordTree
from mirror.store.local.blobs import LocalStore
from mirror.store.local.change_files import ChangeFiles
from mirror.store.local.file_tree import FileTree
from mirror.store.local.layout import Layout
from mirror.store.objects.record_tree import Reads
from mirror.store.records.record_catalog import RecordCatalog
from mirror.store.records.repository_records import RepositoryRecords
from tests.support.bucket_records import Machine

APP = Repo("corp", "team/app")
OTHER = Repo("corp", "other")
KINDS = ("pins", "robots")


class MemoryBytes:
    """`MigratedBytes` in a dict. `folder` is for the files of `fetch`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.contents: dict[Digest, bytes] = {}
        #: How many bytes were fetched.
        self.fetched = 0
        self._folder = folder

    def put(self, content: bytes) -> Digest:
        """Push."""
        digest = Digest.of(content)
        self.contents[digest] = content
        return digest

    def sizes(self) -> Iterator[tuple[Digest, int]]:
        yield from [(digest, len(content)) for digest, content in self.contents.items()]

    def size(self, digest: Digest) -> int | None:
        content = self.contents.get(digest)
        return None if content is None else len(content)

    @contextmanager
    def fetch(self, digest: Digest, read: Callable[[int], None]) -> Iterator[tuple[Path, int]]:
        content = self.contents.get(digest)
        if content is None:
            raise BlobUnknown(f"{digest} is not here")
        read(len(content))
        self.fetched += len(content)
        if not digest.matches(content):
            raise BlobDamaged(f"{digest} is wrong")
        file = self._folder / digest.hex
        file.write_bytes(content)
        yield file, len(content)

    def store(self, digest: Digest, file: Path, size: int) -> None:
        content = file.read_bytes()
        assert len(content) == size
        assert digest.matches(content)
        self.contents[digest] = content


class Site:
    """One side, with what clients and operators do there."""

    def __init__(self, name: str, tree: RecordTree, root: Path, kinds: str) -> None:
        """`kinds` is the folder of the JSON records, with a slash."""
        self.name = name
        self.tree = tree
        self.bytes = MemoryBytes(root / "fetched")
        self.catalog = RecordCatalog(tree)
        self.records = RepositoryRecords(tree, ChangeFiles(Layout(root)))
        self.kinds = kinds

    def side(self) -> MigrationSide:
        """What a migration gets."""
        return MigrationSide(self.name, self.tree, self.bytes, lambda kind: self.kinds + kind)

    def push(self, tag: str, layer: bytes = b"", repo: Repo = APP, *, subject: Digest | None = None) -> Digest:
        """An image of one layer, pushed in the order of the protocol."""
        digest = self.bytes.put(layer or f"layer of {tag}".encode())
        self.records.put_link(repo, BlobLink(digest, self.bytes.size(digest) or 0, LinkState.LINKED, 1.0))
        content = json.dumps({"layer": str(digest), "subject": str(subject)}).encode()
        manifest = self.bytes.put(content)
        if subject is not None:
            self.records.put_referrer(repo, subject, Descriptor(OCI_MANIFEST, manifest, len(content)))
        self.catalog.put_manifest(repo, ManifestRecord(manifest, OCI_MANIFEST, len(content), 1.0))
        self.catalog.put_history(repo, tag, (Sighting(manifest, OCI_MANIFEST, len(content), 1.0, 1.0),))
        self.catalog.put_tag(repo, TagRecord(tag, manifest, OCI_MANIFEST, len(content), 1.0))
        return manifest

    def delete(self, tag: str, repo: Repo = APP) -> None:
        """The image of a tag, which can be undeleted."""
        record = self.catalog.get_tag(repo, tag)
        assert record is not None
        manifest = self.catalog.get_manifest(repo, record.digest)
        assert manifest is not None
        self.records.put_deleted_manifest(repo, DeletedManifest.of(manifest, 2.0, "alice", (tag,)))
        self.catalog.drop_tag(repo, tag)
        self.catalog.drop_manifest(repo, record.digest)

    def untag(self, tag: str, repo: Repo = APP) -> None:
        """The tag alone."""
        record = self.catalog.get_tag(repo, tag)
        assert record is not None
        self.records.put_deleted_tag(repo, DeletedTag.of(record, 2.0, "alice"))
        self.catalog.drop_tag(repo, tag)

    def empty(self, repo: Repo) -> None:
        """Nothing is left of a repository but its name."""
        for folder, _ in list(folders_of(self.tree, repo)):
            for name in list(self.tree.names(folder)):
                self.tree.drop(f"{folder}/{name}")

    def json(self, kind: str, name: str, content: bytes | None) -> None:
        """Write a JSON record, or drop it."""
        key = f"{self.kinds}{kind}/{name}.json"
        if content is None:
            self.tree.drop(key)
        else:
            self.tree.write(key, content)

    def all_records(self) -> dict[str, bytes]:
        """Every record of hosted repositories and of all kinds, by key."""
        found: dict[str, bytes] = {}
        repos = {
            repo
            for had in (True, False)
            for repo in self.tree.repositories([name for name, _ in FOLDERS], "corp", had=had)
        }
        folders = [(folder, folder) for repo in repos for folder, _ in folders_of(self.tree, repo)]
        folders += [(f"{self.kinds}{kind}", kind) for kind in KINDS]
        for folder, shown in folders:
            for name in self.tree.names(folder):
                record = self.tree.read(f"{folder}/{name}")
                if record is not None:
                    found[f"{shown}/{name}"] = record.record.removesuffix(b"\n")
        return found

    def taken(self) -> set[Repo]:
        """The names that are taken."""
        return set(self.records.taken("corp"))


def disk_site(root: Path) -> Site:
    """A disk."""
    layout = Layout(root)
    LocalStore(layout)
    return Site("the disk", FileTree(layout), root, "")


def bucket_site(root: Path) -> tuple[Site, Machine]:
    """A bucket, and the machine that remembers it."""
    root.mkdir(parents=True, exist_ok=True)
    machine = Machine(root)
    machine.list_all()
    return Site("the bucket", machine.tree(Reads.REMEMBERED), root, "state/"), machine


class Move:
    """A migration between two sites, which is run again and again."""

    def __init__(self, source: Site, target: Site, folder: Path) -> None:
        self.source = source
        self.target = target
        self.waits: list[float] = []
        self._file = folder / "migration.sqlite"

    def run(
        self,
        options: MigrationOptions | None = None,
        *,
        source: MigrationSide | None = None,
        target: MigrationSide | None = None,
        take: Callable[[int], float] = lambda count: 0.0,
    ) -> MigrationReport:
        """One pass. `source` and `target` stand for the sites'."""
        journal = SqliteMigrationJournal(self._file, "disk and bucket")
        try:
            return Migration(
                source or self.source.side(),
                target or self.target.side(),
                journal,
                options or MigrationOptions(["corp"], (), KINDS),
                MigrationProgress(),
                take=take,
                wait=self.waits.append,
            ).run()
        finally:
            journal.close()

    def expect_same(self) -> None:
        """Both sides have the same records and names, and the target all bytes that they need."""
        here, there = self.source.all_records(), self.target.all_records()
        assert here == there
        assert self.source.taken() == self.target.taken()
        for key in here:
            folder, _, name = key.rpartition("/")
            if folder.endswith(("/_manifests", "/_blobs", "/_deleted")):
                digest = Digest.parse(name.replace("-", ":"))
                assert self.target.bytes.contents[digest] == self.source.bytes.contents[digest]
