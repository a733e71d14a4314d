"""When a store counts as failing, and when as good again."""

from __future__ import annotations

from structlog.testing import capture_logs

from mirror.errors import BlobTooLarge, StoreError, StoreFull
from mirror.intake.store_health import StoreHealth


def test_a_record_does_not_show_that_a_full_store_takes_blobs() -> None:
    """A disk with no room for a layer has room for a tag: one line tells that it is full, until a blob is stored."""
    health = StoreHealth()
    with capture_logs() as logged:
        for _ in range(3):
            health.record_stored()
            health.failed(StoreFull("no room for a layer"), "a layer")
            assert health.is_failing
        health.record_stored()
        assert health.is_failing
        health.recovered()
        assert not health.is_failing
    assert [line["event"] for line in logged] == ["store failed", "store recovered"]


def test_a_store_that_fails_and_then_is_full() -> None:
    """Whatever it failed with first: a record does not show that there is room again."""
    health = StoreHealth()
    with capture_logs() as logged:
        health.failed(StoreError("Input/output error"), "a layer")
        health.failed(StoreFull("no room for a layer"), "a layer")
        health.record_stored()
        assert health.is_failing
        health.recovered()
        health.failed(StoreError("Input/output error"), "a layer")
        health.record_stored()
        assert not health.is_failing
    assert [line["event"] for line in logged] == ["store failed", "store recovered"] * 2


def test_any_write_shows_that_a_disk_is_writable_again() -> None:
    """What was read-only, or broken, is not any more. A blob that never fits says nothing about the store."""
    health = StoreHealth()
    with capture_logs() as logged:
        health.failed(BlobTooLarge("larger than the store"), "a layer")
        assert not health.is_failing
        health.failed(StoreError("Read-only file system"), "a layer")
        assert health.is_failing
        health.record_stored()
        assert not health.is_failing
    assert [line["event"] for line in logged] == ["blob larger than store", "store failed", "store recovered"]
