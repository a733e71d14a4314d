"""JSON records that only the holder of a lease writes.

    put ── in the version that was seen last ──> written
     ├── another one ── the lease is renewed ──> ours still: what is there was written late by an earlier holder, and is
     │                                           replaced
     └── the lease is lost, or another's ──> LeaseLost; nothing is written

So what a holder that was frozen writes late does nothing: either the next holder has written since, or it will.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, Protocol

from mirror.errors import BucketUnavailable, LeaseLost, RecordChanged
from mirror.ports import ABSENT, Expected, Records, Version, Versioned

#: How often a record is written again that changes all the time.
_TRIES: Final = 10


class HeldLease(Protocol):
    """What is needed of a lease."""

    @property
    def name(self) -> str: ...

    def still_held(self) -> bool:
        """Blocking: whether the lease is ours now, for certain. Raises `StoreError`."""


class FencedRecords:
    """`Records` for one holder of a lease, as long as it has it. May be used from any thread."""

    def __init__(self, records: Records, lease: HeldLease) -> None:
        self._records = records
        self._lease = lease
        #: The versions that were seen or written last.
        self._versions: dict[str, Expected] = {}
        self._is_lost = False

    def __repr__(self) -> str:
        return f"<FencedRecords of {self._lease!r}>"

    def get(self, key: str) -> dict[str, Any] | None:
        """See `Records.get`."""
        found = self.versioned(key)
        return found.record if found else None

    def versioned(self, key: str) -> Versioned[dict[str, Any]] | None:
        """See `Records.versioned`."""
        found = self._records.versioned(key)
        self._versions[key] = found.version if found else ABSENT
        return found

    def put(self, key: str, record: Mapping[str, Any], *, expect: Expected = None) -> Version:
        """See `Records.put`. Raises `LeaseLost`."""
        if expect is not None:
            self._check()
            version = self._records.put(key, record, expect=expect)
            self._versions[key] = version
            return version
        for _ in range(_TRIES):
            known = self._known(key)
            try:
                version = self._records.put(key, record, expect=known)
            except RecordChanged:
                self._confirm(key)
                continue
            self._versions[key] = version
            return version
        raise BucketUnavailable(f"the record {key} is changed all the time")

    def drop(self, key: str, *, expect: Expected = None) -> bool:
        """See `Records.drop`. Raises `LeaseLost`."""
        if expect is not None:
            self._check()
            return self._records.drop(key, expect=expect)
        for _ in range(_TRIES):
            known = self._known(key)
            if known is ABSENT:
                return False
            try:
                dropped = self._records.drop(key, expect=known)
            except RecordChanged:
                self._confirm(key)
                continue
            self._versions[key] = ABSENT
            return dropped
        raise BucketUnavailable(f"the record {key} is changed all the time")

    def all(self) -> Iterator[dict[str, Any]]:
        """See `Records.all`."""
        return self._records.all()

    def _known(self, key: str) -> Expected:
        self._go_on()
        if key not in self._versions:
            # what is there now is replaced only by whoever has the lease now
            self._confirm(key)
        return self._versions[key]

    def _confirm(self, key: str) -> None:
        """Looks at a record again, and then makes sure that the lease is ours."""
        self.versioned(key)
        self._check()

    def _check(self) -> None:
        if not self._lease.still_held():
            self._is_lost = True
        self._go_on()

    def _go_on(self) -> None:
        if self._is_lost:
            raise LeaseLost(self._lease.name)
