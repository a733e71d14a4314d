"""Records in a bucket, read and written there each time: the simplest correct `StateTree`."""

from __future__ import annotations

from collections.abc import Iterable

from mirror.errors import RecordChanged
from mirror.ports import ABSENT, Bucket, Expected, StoredObject, Version, Versioned

_LIMIT = 1 << 20


class PlainTree:
    """See `RecordTree`. A record that was dropped is an object without bytes."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    def read(self, key: str) -> Versioned[bytes] | None:
        found = self._bucket.read(key, _LIMIT)
        if not isinstance(found, StoredObject) or not found.content:
            return None
        return Versioned(found.content, found.version)

    def write(self, key: str, content: bytes, *, expect: Expected = None) -> Version:
        assert content
        return self._replace(key, content, expect)

    def drop(self, key: str, *, expect: Expected = None) -> None:
        if self.read(key) is not None or expect is not None:
            self._replace(key, b"", expect)

    def _replace(self, key: str, content: bytes, expect: Expected) -> Version:
        if expect is ABSENT:
            found = self._bucket.read(key, _LIMIT)
            if isinstance(found, StoredObject):
                if found.content:
                    raise RecordChanged("there is a record")
                expect = found.version
        return self._bucket.write(key, content, expect=expect)

    def names(self, folder: str) -> Iterable[str]:
        below = f"{folder}/"
        names = ((info.key.removeprefix(below), info.size) for info in self._bucket.list(below))
        return [name for name, size in names if size and "/" not in name]

    def flush(self) -> None:
        """All that was written is durable."""
