"""The records of hosted repositories: on disk, and in dicts."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mirror.errors import RecordDamaged, StoreError
from mirror.ports import Catalog, HostedRecords
from mirror.store.local.blobs import LocalStore
from mirror.store.local.layout import Layout
from mirror.store.local.local_records import local_catalog, local_repository_records
from tests.support.hosted_records_suite import (
    APP,
    ONE,
    TWO,
    HostedRecordsSuite,
    deleted,
    deleted_tag,
    link,
    referrers_of,
    renew,
    signature,
)
from tests.support.memory_hosted_records import MemoryHostedRecords
from tests.support.memory_store import MemoryCatalog
from tests.support.tmpfs import tmpfs


class TestMemoryHostedRecords(HostedRecordsSuite):
    """The simplest one passes the suite that it is the model of."""

    @pytest.fixture
    def catalog(self) -> Catalog:
        """Empty."""
        return MemoryCatalog()

    @pytest.fixture
    def records(self, catalog: Catalog) -> HostedRecords:
        """Empty."""
        return MemoryHostedRecords(catalog)

    @pytest.fixture
    def another(self, records: HostedRecords) -> HostedRecords:
        """Nobody else can have the same."""
        return records


class TestLocalRepositoryRecords(HostedRecordsSuite):
    """Small files beside tags and manifests."""

    @pytest.fixture
    def catalog(self, layout: Layout) -> Catalog:
        """On the same disk."""
        return local_catalog(layout)

    @pytest.fixture
    def records(self, layout: Layout) -> HostedRecords:
        """Empty."""
        return local_repository_records(layout)

    @pytest.fixture
    def another(self, layout: Layout) -> HostedRecords:
        """Another process's view of the same disk."""
        return local_repository_records(layout)

    def test_no_change_of_another_process_is_lost(self, records: HostedRecords, layout: Layout) -> None:
        """Processes that change one link at the same time read it again when another was first."""
        code = (
            "import sys; from pathlib import Path; from mirror.store.local.layout import Layout;"
            "from mirror.store.local.local_records import local_repository_records;"
            "from tests.support.hosted_records_suite import renew;"
            "renew(local_repository_records(Layout(Path(sys.argv[1]))), 50)"
        )
        processes = [subprocess.Popen([sys.executable, "-c", code, layout.root]) for _ in range(2)]
        renew(records, 50)
        assert [process.wait() for process in processes] == [0, 0]
        found = records.link(APP, ONE)
        assert found
        assert found.record.since == 150.0


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """Of an empty store."""
    return LocalStore(Layout(tmp_path)).layout


@pytest.mark.parametrize("text", [b'{"size": 1, "st', b"", b"[]", b'{"size": "much"}', b'{"mediaType": 1}'])
def test_a_damaged_record_is_not_absent(layout: Layout, text: bytes) -> None:
    """A record that was cut or is foreign is an error of its own that names the record; it can be replaced."""
    records = local_repository_records(layout)
    records.put_link(APP, link())
    records.put_referrer(APP, TWO, signature(ONE))
    records.put_deleted_manifest(APP, deleted())
    records.put_deleted_tag(APP, deleted_tag())
    folder = Path(layout.repository(APP))
    for path in (folder / "_blobs", folder / "_referrers", folder / "_deleted", folder / "_deleted_tags"):
        for file in (file for file in path.rglob("*") if file.is_file()):
            file.write_bytes(text)
    reads: list[tuple[str, Callable[[], object]]] = [
        (f"the link of {APP} to {ONE}", lambda: records.link(APP, ONE)),
        (f"the entry of {APP}@{ONE}, which refers to {TWO},", lambda: referrers_of(records, APP, TWO)),
        (f"the record of the deleted manifest {APP}@{ONE}", lambda: records.deleted_manifest(APP, ONE)),
        (f"the record of the deleted tag {APP}:1.0", lambda: records.deleted_tag(APP, "1.0")),
    ]
    for what, read in reads:
        with pytest.raises(RecordDamaged, match=f"{what} is damaged"):
            read()
    assert list(records.linked(APP)) == [ONE]
    assert list(records.deleted_manifests(APP)) == [ONE]
    assert records.deleted_tags(APP) == ["1.0"]
    records.put_link(APP, link())
    assert records.link(APP, ONE)
    records.put_referrer(APP, TWO, signature(ONE))
    assert referrers_of(records, APP, TWO) == [signature(ONE)]


def test_a_referrer_under_the_digest_of_another_is_damaged(layout: Layout) -> None:
    """The descriptor in an entry must be about the digest that names the file."""
    records = local_repository_records(layout)
    records.put_referrer(APP, ONE, signature(ONE))
    folder = Path(layout.referrers(APP, ONE))
    next(folder.iterdir()).rename(folder / f"sha512-{TWO.hex}")
    with pytest.raises(RecordDamaged):
        referrers_of(records, APP, ONE)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.EACCES, errno.ENOMEM])
def test_what_cannot_be_read_is_not_absent(layout: Layout, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records that the disk does not give at the moment are errors, and the change counter is not known."""
    records = local_repository_records(layout)
    records.put_link(APP, link())
    records.put_referrer(APP, TWO, signature(ONE))
    records.put_deleted_manifest(APP, deleted())
    records.put_deleted_tag(APP, deleted_tag())
    records.note_change(APP)

    def fail(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    reads: list[Callable[[], object]] = [
        lambda: records.link(APP, ONE),
        lambda: list(records.linked(APP)),
        lambda: referrers_of(records, APP, TWO),
        lambda: records.deleted_manifest(APP, ONE),
        lambda: list(records.deleted_manifests(APP)),
        lambda: records.deleted_tag(APP, "1.0"),
        lambda: records.deleted_tags(APP),
        lambda: list(records.repositories("corp")),
    ]
    for read in reads:
        with monkeypatch.context() as patch:
            for name in ("open", "lstat", "listdir", "scandir"):
                patch.setattr(os, name, fail)
            patch.setattr(Path, "read_bytes", fail)
            with pytest.raises(StoreError, match=os.strerror(number)):
                read()
        assert read() is not None
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", fail)
        assert records.changes(APP) == -1
    assert records.changes(APP) == 1


def test_a_change_is_noted_on_a_full_disk(tmp_path: Path) -> None:
    """A deletion frees room, so it must work when there is none: other processes see it at once."""
    with tmpfs(tmp_path, "size=200k") as mount:
        records = local_repository_records(LocalStore(Layout(mount)).layout)
        records.put_link(APP, link())
        records.note_change(APP)
        with pytest.raises(OSError, match="No space"):
            (mount / "ballast").write_bytes(bytes(300_000))
        for _ in range(10_000):
            records.note_change(APP)
        records.drop_link(APP, ONE)
        records.flush()
        assert local_repository_records(Layout(mount)).changes(APP) == 10_001


def test_a_deletion_survives_a_power_cut(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """The names that were made or dropped are durable after `flush`, each folder once."""
    records = local_repository_records(layout)
    records.put_link(APP, link())
    records.flush()
    synced: list[str] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}").removeprefix(f"{layout.root}/"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    records.drop_link(APP, ONE)
    records.drop_link(APP, TWO)
    assert synced == []
    records.flush()
    assert synced == ["repositories/corp/team/app/_blobs"]
    records.flush()
    assert len(synced) == 1


def test_a_folder_that_was_not_synced_is_synced_by_the_next_flush(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flush that fails must not let the flush of another caller succeed without its folders."""
    records = local_repository_records(layout)
    records.put_link(APP, link())
    records.put_deleted_tag(APP, deleted_tag())
    records.flush()
    records.drop_link(APP, ONE)
    records.drop_deleted_tag(APP, "1.0")
    synced: list[int] = []

    def fail(_descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        for _ in range(2):
            with pytest.raises(StoreError):
                records.flush()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", synced.append)
        records.flush()
    assert len(synced) == 2
