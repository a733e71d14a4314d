"""Compare-and-set for small files that are replaced by a rename. The version of a record is a hash of its content.

    put(expect=v1) ── writes a temporary file ──> takes the record's lock ── content is v1 ──> renames: v2
                                                                          └── it is not ──> RecordChanged

Every writer takes the lock, also one that expects nothing: its rename must not fall between the comparison and the
rename of another. The lock lasts for the comparison and the rename, never for the write. Readers need none.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import AbstractContextManager

from mirror.errors import RecordChanged
from mirror.ports import ABSENT, Condition, Version, in_time
from mirror.store.local.durable import ABSENT_ERRNOS, AnyPath, read_whole
from mirror.store.local.layout import Layout
from mirror.store.local.locks import ShortLock


def version_of(content: bytes) -> Version:
    """The version of a record with this content."""
    return Version(hashlib.blake2b(content, digest_size=16).hexdigest())


def only_writer(
    layout: Layout, path: AnyPath, expect: Condition = None, *, version: Callable[[bytes], Version | None] = version_of
) -> AbstractContextManager[None]:
    """Be the only process that replaces or deletes this record. Blocks for a short time.

    `version` gives the version of a content; None if a record with this content counts as absent.

    Raises `RecordChanged` if the record is not in the expected version, what `InTime.check` raises, `OSError` or
    `StoreError` if that cannot be determined.
    """
    return _OnlyWriter(layout, os.fspath(path), expect, version)


class _OnlyWriter(ShortLock):
    __slots__ = ("_expect", "_path", "_version")

    def __init__(
        self, layout: Layout, path: str, expect: Condition, version: Callable[[bytes], Version | None]
    ) -> None:
        # records share 256 lock files; two that share one wait for each other for a few system calls
        below = os.fsencode(path.removeprefix(f"{layout.root}/"))
        super().__init__(layout, f"record-{hashlib.blake2b(below, digest_size=1).hexdigest()}")
        self._path = path
        self._expect = expect
        self._version = version

    def __enter__(self) -> None:
        super().__enter__()
        try:
            expected = in_time(self._expect)
            if expected is None:
                return
            if _present(self._path, self._version) != (None if expected is ABSENT else expected):
                raise RecordChanged("the record was changed meanwhile")
        except BaseException:
            self.release()
            raise


def _present(path: str, version: Callable[[bytes], Version | None]) -> Version | None:
    try:
        return version(read_whole(path))
    except OSError as error:
        if error.errno in ABSENT_ERRNOS:
            return None
        raise
