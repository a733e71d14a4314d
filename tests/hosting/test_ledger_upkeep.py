"""The ledger is completed from the records, while they change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest

from mirror.errors import IndexUnavailable, RecordDamaged, StoreError
from mirror.hosting.ledger_upkeep import LedgerUpkeep
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_MANIFEST
from mirror.oci.reference import Repo
from mirror.policy.hosted.quotas import Overrun, ScopePatterns
from mirror.policy.hosted_records import BlobLink, DeletedManifest, LinkState
from mirror.policy.records import ManifestRecord
from mirror.ports import Versioned
from tests.support.memory_hosted_records import MemoryHostedRecords
from tests.support.memory_ledger import MemoryLedger
from tests.support.memory_store import MemoryCatalog

APP = Repo("corp", "team/app")
OTHER = Repo("corp", "other")
CACHED = Repo("docker.io", "library/alpine")


def blob(number: int) -> Digest:
    """A digest of its own for each number."""
    return Digest.of(str(number).encode())


def link(number: int, state: LinkState = LinkState.LINKED) -> BlobLink:
    """A link to a blob of 10 bytes."""
    return BlobLink(blob(number), 10, state, 1.0)


class ChangingRecords(MemoryHostedRecords):
    """Records that change right after one of them was read, or that cannot be read."""

    after_read: Callable[[], None] | None = None
    damaged: Digest | None = None
    fails = False

    def link(self, repo: Repo, digest: Digest) -> Versioned[BlobLink] | None:
        if self.fails:
            raise StoreError("Input/output error")
        if digest == self.damaged:
            raise RecordDamaged("cut")
        found = super().link(repo, digest)
        change, self.after_read = self.after_read, None
        if change:
            change()
        return found


@pytest.fixture
def catalog() -> MemoryCatalog:
    """Empty."""
    return MemoryCatalog()


@pytest.fixture
def records(catalog: MemoryCatalog) -> ChangingRecords:
    """Empty."""
    return ChangingRecords(catalog)


@pytest.fixture
def ledger() -> MemoryLedger:
    """Empty."""
    return MemoryLedger(ScopePatterns({"corp": (), "lab": ()}))


@pytest.fixture
def upkeep(ledger: MemoryLedger, records: ChangingRecords, catalog: MemoryCatalog) -> LedgerUpkeep:
    """Of these."""
    return LedgerUpkeep(ledger, records, catalog, ("corp", "lab"))


async def test_an_empty_ledger_is_filled(
    upkeep: LedgerUpkeep, ledger: MemoryLedger, records: ChangingRecords, catalog: MemoryCatalog
) -> None:
    """With links, manifests, and what is deleted but kept; not with reservations, removed links or cached content."""
    for number, state in enumerate(LinkState):
        records.put_link(APP, link(number, state))
    records.put_link(OTHER, link(0))
    catalog.put_manifest(APP, ManifestRecord(blob(10), OCI_MANIFEST, 500, 1.0))
    catalog.put_manifest(CACHED, ManifestRecord(blob(11), OCI_MANIFEST, 500, 1.0))
    records.put_deleted_manifest(APP, DeletedManifest(blob(12), OCI_MANIFEST, 3000, 1.0, 2.0))
    assert await upkeep.complete() == 4
    assert ledger.is_complete()
    assert ledger.usage("corp") == 3510
    assert sorted(ledger.noted(APP)) == sorted([blob(0), blob(10), blob(12)])
    assert sorted(ledger.repositories()) == [OTHER, APP]
    assert await upkeep.complete() == 0


async def test_what_has_gone_is_removed(upkeep: LedgerUpkeep, ledger: MemoryLedger, records: ChangingRecords) -> None:
    """Also of repositories that have no record any more, and of registries that are not configured any more."""
    records.put_link(APP, link(1))
    for repo, number in ((APP, 1), (APP, 2), (OTHER, 3), (Repo("gone", "app"), 4)):
        ledger.add(repo, blob(number), 10)
    ledger.completed(ledger.prepare())
    assert await upkeep.complete() == 3
    assert list(ledger.repositories()) == [APP]
    assert list(ledger.noted(APP)) == [blob(1)]


async def test_a_link_that_is_no_longer_in_force(
    upkeep: LedgerUpkeep, ledger: MemoryLedger, records: ChangingRecords
) -> None:
    """A removal that could not be noted makes the ledger incomplete, and then every record is read."""
    records.put_link(APP, link(1))
    await upkeep.complete()
    records.put_link(APP, link(1, LinkState.REMOVED))
    ledger.fails = True
    with pytest.raises(IndexUnavailable):
        ledger.remove(APP, blob(1))
    ledger.fails = False
    assert not ledger.is_complete()
    assert await upkeep.complete() == 1
    assert ledger.is_complete()
    assert ledger.usage("corp") == 0


async def test_a_link_that_comes_while_it_is_looked_at(
    upkeep: LedgerUpkeep, ledger: MemoryLedger, records: ChangingRecords
) -> None:
    """Between the look at the record and its removal from the ledger, a push writes the record and notes it."""
    ledger.add(APP, blob(1), 10)

    def push() -> None:
        records.put_link(APP, link(1))
        ledger.add(APP, blob(1), 10)

    records.after_read = push
    await upkeep.complete()
    assert list(ledger.noted(APP)) == [blob(1)]


async def test_a_link_that_goes_while_it_is_looked_at(
    upkeep: LedgerUpkeep, ledger: MemoryLedger, records: ChangingRecords
) -> None:
    """Between the look at the record and its entry in the ledger, collection drops the record and notes that."""
    records.put_link(APP, link(1))

    def collect() -> None:
        records.drop_link(APP, blob(1))
        ledger.remove(APP, blob(1))

    records.after_read = collect
    await upkeep.complete()
    assert list(ledger.noted(APP)) == []


async def test_a_damaged_record_changes_nothing(
    upkeep: LedgerUpkeep, ledger: MemoryLedger, records: ChangingRecords
) -> None:
    """What is noted of it stays, and everything else is completed."""
    for number in range(3):
        records.put_link(APP, link(number))
    ledger.add(APP, blob(0), 10)
    records.damaged = blob(0)
    await upkeep.complete()
    assert ledger.usage("corp") == 30
    records.damaged = blob(1)
    await upkeep.complete()
    assert ledger.usage("corp") == 30


async def test_a_disk_that_cannot_be_read_leaves_it_incomplete(
    upkeep: LedgerUpkeep, ledger: MemoryLedger, records: ChangingRecords
) -> None:
    """Nothing is removed; once the disk can be read, the next attempt completes it."""
    records.put_link(APP, link(1))
    ledger.add(APP, blob(2), 10)
    records.fails = True
    with pytest.raises(StoreError):
        await upkeep.complete()
    assert not ledger.is_complete()
    assert list(ledger.noted(APP)) == [blob(2)]
    records.fails = False
    await upkeep.complete()
    assert ledger.is_complete()
    assert list(ledger.noted(APP)) == [blob(1)]


class CountingLedger(MemoryLedger):
    """Counts its changes."""

    changes = 0

    def add(self, repo: Repo, digest: Digest, size: int, limits: Mapping[str, int] | None = None) -> Overrun | None:
        self.changes += 1
        return super().add(repo, digest, size, limits)

    def remove(self, repo: Repo, digest: Digest) -> None:
        self.changes += 1
        super().remove(repo, digest)

    def correct(self, repo: Repo, content: Mapping[Digest, int | None]) -> None:
        self.changes += 1
        super().correct(repo, content)


async def test_a_lost_ledger_is_filled_with_few_changes(records: ChangingRecords, catalog: MemoryCatalog) -> None:
    """Not one for each link: there may be a million."""
    ledger = CountingLedger(ScopePatterns({"corp": ()}))
    upkeep = LedgerUpkeep(ledger, records, catalog, ("corp",))
    for number in range(1000):
        records.put_link(APP, link(number))
    assert await upkeep.complete() == 1000
    assert ledger.changes <= 25
    for number in range(1000):
        records.drop_link(APP, blob(number))
    assert await upkeep.complete() == 1000
    assert ledger.changes <= 50


async def test_many_links(upkeep: LedgerUpkeep, ledger: MemoryLedger, records: ChangingRecords) -> None:
    """More than one step of one repository, and a change of a link that is noted already."""
    for number in range(1000):
        records.put_link(APP, link(number))
    assert await upkeep.complete() == 1000
    records.put_link(APP, replace(link(1), since=5.0))
    assert await upkeep.complete() == 0
    assert ledger.usage("corp") == 10_000
