"""Hosted blobs in a bucket under everything that `test_collection_in_any_order.py` does. Each call of the bucket is a
turn, so that a process may stop, or die, between any two of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from mirror.errors import BlobUnknown, RecordChanged, StoreError
from mirror.oci.digest import Digest
from mirror.ports import ABSENT, BlobInfo, Expected, RecordState, RememberedRecord, StoredObject, Version, Versioned
from mirror.store.objects.collected_keys import CollectedKeys
from mirror.store.objects.hosted_blobs import HostedObjects
from mirror.store.objects.hosted_sweep import HostedSweep
from mirror.store.objects.object_keys import hosted_key, parse_hosted_key, parse_state_key
from mirror.store.objects.state_records import BlobStates, FoundState, StateViews
from tests.collection.test_collection_in_any_order import Hosting, TwoClocks, push_at_the_last_moments
from tests.support.memory_bucket import MemoryBucket
from tests.support.turns import Turns, taking_turns
from tests.support.unreliable_disk import UnreliableCatalog, UnreliableHostedRecords, UnreliableStore

_LIMIT = 1 << 20
_DAY = 86400.0


class _PlainTree:
    """See `StateTree`: read and written in the bucket each time. What was dropped is left out by size."""

    def __init__(self, bucket: MemoryBucket) -> None:
        self._bucket = bucket

    def read(self, key: str) -> Versioned[bytes] | None:
        found = self._bucket.read(key, _LIMIT)
        return Versioned(found.content, found.version) if isinstance(found, StoredObject) and found.content else None

    def write(self, key: str, content: bytes, *, expect: Expected = None) -> Version:
        if expect is ABSENT and self.read(key) is None and self._bucket.head(key) is not None:
            raise RecordChanged("it was dropped: no state ever is")
        return self._bucket.write(key, content, expect=expect)

    def drop(self, key: str, *, expect: Expected = None) -> None:
        self._bucket.write(key, b"", expect=expect)

    def names(self, folder: str) -> Iterable[str]:
        return [info.key.rpartition("/")[2] for info in self._bucket.list(f"{folder}/") if info.size]

    def scan(self, prefix: str, after: str, count: int) -> Sequence[RememberedRecord]:
        found: list[RememberedRecord] = []
        for info in self._bucket.list(f"{prefix}/", after=after):
            if len(found) < count and (record := self.read(info.key)):
                found.append(RememberedRecord(info.key, RecordState.LIVE, record.version, record.record, True, 0))
        return found

    def flush(self) -> None:
        """All is durable."""


class _NoCopies:
    """Of a disk without room."""

    def put(self, info: BlobInfo, content: bytes) -> None:
        """Keeps nothing."""

    def size(self, digest: Digest) -> int | None:
        return None

    @contextmanager
    def sound(self, digest: Digest) -> Iterator[tuple[Path, int]]:
        raise BlobUnknown("there is no copy")
        yield


class _Contents:
    """Reads hosted blobs from the bucket."""

    def __init__(self, disk: _BucketDisk) -> None:
        self._disk = disk

    def stat(self, digest: Digest) -> BlobInfo:
        return self._disk.blobs.hosted(digest)

    def read(self, digest: Digest, limit: int) -> bytes:
        self._disk.names.check(digest)
        for _ in range(3):
            source = self._disk.blobs.source(digest)
            if source is None:
                raise BlobUnknown(f"{digest} is not hosted")
            found = self._disk.turned.read(source.key, limit)
            if isinstance(found, StoredObject):
                return found.content
        raise StoreError("the object is gone")


class _Names:
    """The blobs that the bucket has, and that their states name. Those in `unreadable` cannot be read."""

    def __init__(self, bucket: MemoryBucket) -> None:
        self._bucket = bucket
        self.unreadable: set[Digest] = set()

    def check(self, digest: Digest) -> None:
        """Raises `StoreError` if it cannot be read."""
        if digest in self.unreadable:
            raise StoreError(f"{digest} cannot be read")

    def walk(self) -> Iterable[BlobInfo]:
        content = self._bucket.content()
        states = BlobStates(_PlainTree(self._bucket))
        for key in content:
            digest = parse_state_key(key)
            state = states.find(digest).state if digest else None
            if digest and state and state.is_present and hosted_key(digest, state.attempt) in content:
                yield BlobInfo(digest, state.size)


class _BucketDisk:
    """What all processes share: see `MemoryDisk`."""

    def __init__(self, time: TwoClocks, turns: Turns) -> None:
        # the clock of the store is another one, which nobody sets
        self.bucket = MemoryBucket(now=lambda: 5_000_000.0 + time.passed)
        self.turned = taking_turns(self.bucket, turns)
        self.time = time
        self.cache = UnreliableStore()
        self.catalog = UnreliableCatalog()
        self.records = UnreliableHostedRecords(self.catalog)
        self.names = _Names(self.bucket)
        states = BlobStates(_PlainTree(self.turned))
        views, copies, locks = StateViews(states, states), _NoCopies(), None
        self.blobs = HostedObjects(
            self.turned,
            views,
            copies,  # type: ignore[arg-type]  # all that a push in memory needs
            locks,  # type: ignore[arg-type]  # likewise
            CollectedKeys(self.turned),
            now=time.wall,
            clock=time.steady,
        )
        self.sweeping = HostedSweep(self.bucket, views, self.blobs.lost, now=time.wall)

    def contents(self) -> _Contents:
        """Reads the hosted blobs."""
        return _Contents(self)

    def sweep(self) -> None:
        """Finds what collectors and pushes that died have left. Afterwards there is nothing but what states name."""
        self.blobs.free_collected()
        self.time.passed += 2 * _DAY
        for page in self.sweeping.pages(""):
            assert not page.queued
            assert not page.lost
        listed = [parse_hosted_key(key) for key in self.bucket.content() if key.startswith("hosted/")]
        assert sorted(found[0] for found in listed if found) == [info.digest for info in self.names.walk()]


class _HostingInBucket(Hosting):
    """The same workers, with a bucket."""

    def new_disk(self) -> Any:
        return _BucketDisk(self.time, self.turns)


def test_in_any_order_in_a_bucket() -> None:
    """Nothing goes that something needs which stays; in the end nothing is left that nothing needs."""
    with structlog.testing.capture_logs():
        run_state_machine_as_test(_HostingInBucket, settings=settings(max_examples=80, stateful_step_count=12))


def test_no_fault_in_a_bucket_is_found_without_one() -> None:
    """The moments at which planted faults show."""
    with structlog.testing.capture_logs():
        push_at_the_last_moments(25, _HostingInBucket)


def _collect_whatever_came(self: HostedObjects, digest: Digest, expect: Version) -> int:
    found = self._find(digest)
    if not found.state.is_present:
        return 0
    self._states.write(found.state.collected(1.0), found.expect)
    self._collected.add(hosted_key(digest, found.state.attempt))
    return found.state.size


def _rescue_without_a_change(self: HostedObjects, found: FoundState) -> BlobInfo:
    return BlobInfo(found.state.digest, found.state.size)


@pytest.mark.parametrize(
    ("name", "planted"), [("collect", _collect_whatever_came), ("_rescue", _rescue_without_a_change)]
)
def test_a_fault_in_a_bucket_is_found(name: str, planted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine fails if a state is changed without its version, or not changed by who relies on the blob."""
    monkeypatch.setattr(HostedObjects, name, planted)
    with structlog.testing.capture_logs(), pytest.raises(AssertionError):
        push_at_the_last_moments(500, _HostingInBucket)
