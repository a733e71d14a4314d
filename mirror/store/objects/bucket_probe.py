"""Whether a store keeps what it promises about writes that expect a version.

    not probed ──(probe, or the first write that expects a version)──┬──> fit
         ^                                                           ├──> unfit: every such write is refused
         └───────────────(the bucket does not answer)────────────────┘

Some stores take such writes and ignore the condition (rclone's and s3rver's, older ones of MinIO): of two pushes of a
tag at the same time both would be acknowledged, and one be lost. Nothing but trying shows it.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from mirror.errors import BucketUnavailable, BucketUnfit, RecordChanged
from mirror.ports import (
    ABSENT,
    PROBES,
    Aborted,
    Body,
    Bucket,
    BucketHealth,
    Expected,
    NotChanged,
    ObjectInfo,
    ObjectWriter,
    StoredObject,
    Version,
)

#: More than any of them has.
_LIMIT: Final = 1000


def probe_key() -> str:
    """Of an object that nobody else uses."""
    return f"{PROBES}{secrets.token_hex(16)}"


def probe_conditions(bucket: Bucket) -> None:
    """Try writes that expect a version: create an object twice, and replace it in a version that it no longer has.

    Blocking, seven requests. Raises `BucketUnfit` with the reason, and `BucketUnavailable` if it cannot be tried.
    """
    key = probe_key()
    contents = [secrets.token_bytes(32) for _ in range(4)]
    try:
        first = bucket.write(key, contents[0], expect=ABSENT)
        if _is_taken(bucket, key, contents[1], ABSENT):
            raise BucketUnfit("the object store lets an object be created twice")
        try:
            second = bucket.write(key, contents[2], expect=first)
        except RecordChanged as error:
            raise BucketUnfit("the object store refuses to replace an object in the version that it has") from error
        if _is_taken(bucket, key, contents[3], first):
            raise BucketUnfit("the object store lets an object be replaced in a version that it no longer has")
        if bucket.read(key, _LIMIT) != StoredObject(contents[2], second):
            raise BucketUnfit("the object store does not give back what was written last")
    finally:
        with suppress(BucketUnavailable):
            bucket.delete([key])


def _is_taken(writer: ObjectWriter, key: str, content: bytes, expect: Expected) -> bool:
    try:
        writer.write(key, content, expect=expect)
    except RecordChanged:
        return False
    return True


class ProbedBucket:
    """A bucket that is probed before the first write that expects a version. See `mirror.ports.Bucket`.

    Reads, listings and other writes go on in a bucket that is unfit: they need no condition.
    """

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._lock = threading.Lock()
        self._fit = False
        self._reason = ""

    def __repr__(self) -> str:
        return f"<ProbedBucket {'fit' if self._fit else self._reason or 'not probed'}: {self._bucket!r}>"

    def probe(self) -> None:
        """Probe it, if that has not been done; blocking. Raises `BucketUnfit`, or `BucketUnavailable` if it could not
        be done: then it is tried again by the next call.
        """
        if self._fit:
            return
        with self._lock:
            if self._reason:
                raise BucketUnfit(self._reason)
            if not self._fit:
                try:
                    probe_conditions(self._bucket)
                except BucketUnfit as error:
                    self._reason = str(error)
                    raise
                self._fit = True

    def read(self, key: str, limit: int, *, unless: Version | None = None) -> StoredObject | NotChanged | None:
        return self._bucket.read(key, limit, unless=unless)

    def head(self, key: str) -> ObjectInfo | None:
        return self._bucket.head(key)

    def open(self, key: str, start: int = 0, stop: int | None = None) -> Body | None:
        return self._bucket.open(key, start, stop)

    def write(self, key: str, content: bytes, *, expect: Expected = None) -> Version:
        if expect is not None:
            self.probe()
        return self._bucket.write(key, content, expect=expect)

    def upload(self, key: str, file: Path, size: int) -> None:
        self._bucket.upload(key, file, size)

    def delete(self, keys: Sequence[str]) -> None:
        self._bucket.delete(keys)

    def abort_uploads(self, prefix: str, before: float) -> Aborted | None:
        return self._bucket.abort_uploads(prefix, before)

    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
        return self._bucket.list(prefix, after=after)

    def sign(self, key: str, life: float) -> str | None:
        return self._bucket.sign(key, life)

    def health(self) -> BucketHealth:
        health = self._bucket.health()
        return replace(health, is_unfit=True, reason=health.reason or self._reason) if self._reason else health

    def close(self) -> None:
        self._bucket.close()
