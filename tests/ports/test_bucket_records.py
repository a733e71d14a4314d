"""Catalog, records of repositories, JSON records and pins in a bucket: what they do on disk, they do there."""

from __future__ import annotations

from pathlib import Path

import pytest

from mirror.policy.hosted_records import LinkState
from mirror.ports import Catalog, HostedRecords, Pins, Records
from mirror.store.records.pin_records import PinRecords
from tests.support.bucket_records import Machine
from tests.support.catalog_suite import CatalogSuite
from tests.support.hosted_records_suite import APP, ONE, TWO, HostedRecordsSuite, link
from tests.support.pins_suite import PinsSuite
from tests.support.records_suite import RecordsSuite


@pytest.fixture(params=["complete", "incomplete"])
def machine(tmp_path: Path, request: pytest.FixtureRequest) -> Machine:
    """Its bucket is empty; the memory has seen that, or not."""
    machine = Machine(tmp_path)
    if request.param == "complete":
        assert machine.list_all().is_complete
    return machine


@pytest.fixture
def complete(tmp_path: Path) -> Machine:
    """Its bucket is empty, and the memory has seen that."""
    machine = Machine(tmp_path)
    machine.list_all()
    return machine


class TestCatalogInBucket(CatalogSuite):
    """Two processes of one machine."""

    @pytest.fixture
    def catalog(self, complete: Machine) -> Catalog:
        """Empty."""
        return complete.catalog()

    @pytest.fixture
    def another(self, complete: Machine) -> Catalog:
        """Another process's view."""
        return complete.catalog()


class TestRepositoryRecordsInBucket(HostedRecordsSuite):
    """Two processes of one machine."""

    @pytest.fixture
    def catalog(self, complete: Machine) -> Catalog:
        """Beside them."""
        return complete.catalog()

    @pytest.fixture
    def records(self, complete: Machine) -> HostedRecords:
        """Empty."""
        return complete.records()

    @pytest.fixture
    def another(self, complete: Machine) -> HostedRecords:
        """Another process's view."""
        return complete.records()

    def test_a_push_under_way_takes_the_name(self, records: HostedRecords, another: HostedRecords) -> None:
        """A link takes it, and a reservation does not, as on disk; it stays taken when the link has gone."""
        records.put_link(APP, link(TWO, LinkState.RESERVED))
        records.note_change(APP)
        assert not records.is_taken(APP)
        assert not another.is_taken(APP)
        records.put_link(APP, link(ONE))
        assert another.is_taken(APP)
        assert list(another.taken("corp")) == [APP]
        records.drop_link(APP, ONE)
        assert another.is_taken(APP)
        assert not another.release(APP), "there is a reservation"
        records.drop_link(APP, TWO)
        assert another.release(APP)
        assert not records.is_taken(APP)


class TestJsonRecordsInBucket(RecordsSuite):
    """Two processes of one machine, before and after the bucket was listed."""

    @pytest.fixture
    def records(self, machine: Machine) -> Records:
        """None yet."""
        return machine.json("things")

    @pytest.fixture
    def another(self, machine: Machine) -> Records:
        """Another process's view."""
        return machine.json("things")


class TestPinsInBucket(PinsSuite):
    """Likewise."""

    @pytest.fixture
    def pins(self, machine: Machine) -> Pins:
        """None yet."""
        return PinRecords(machine.json("pins"))

    @pytest.fixture
    def another(self, machine: Machine) -> Pins:
        """Another process's view."""
        return PinRecords(machine.json("pins"))
