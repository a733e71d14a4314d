"""Compare-and-set for small files that are replaced by a rename. The version of a record is a hash of its content.

    put(expect=v1) ── writes a temporary file ──> takes the record's lock ── content is v1 ──> renames: v2
                                                                          └── it is not ──> RecordChanged

Every writer takes the lock, also one that expects nothing: its rename must not fall between the comparison and the
rename of another. The lock lasts for the comparison and the rename, never for the write. Readers need none.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mirror.errors import RecordChanged
from mirror.ports import ABSENT, Expected, Version
from mirror.store.local.durable import ABSENT_ERRNOS
from mirror.store.local.layout import Layout
from mirror.store.local.locks import locked


def version_of(content: bytes) -> Version:
    """The version of a record with this content."""
    return Version(hashlib.blake2b(content, digest_size=16).hexdigest())


@contextmanager
def only_writer(
    layout: Layout, path: Path, expect: Expected = None, *, version: Callable[[bytes], Version | None] = version_of
) -> Iterator[None]:
    """Be the only process that replaces or deletes this record. Blocks for a short time.

    `version` gives the version of a content; None if a record with this content counts as absent.

    Raises `RecordChanged` if the record is not in the expected version, `OSError` or `StoreError` if that cannot be
    determined.
    """
    # records share 256 lock files; two that share one wait for each other for a few system calls
    name = hashlib.blake2b(os.fsencode(path.relative_to(layout.root)), digest_size=1).hexdigest()
    with locked(layout, f"record-{name}"):
        if expect is not None and _present(path, version) != (None if expect is ABSENT else expect):
            raise RecordChanged("the record was changed meanwhile")
        yield


def _present(path: Path, version: Callable[[bytes], Version | None]) -> Version | None:
    try:
        return version(path.read_bytes())
    except OSError as error:
        if error.errno in ABSENT_ERRNOS:
            return None
        raise
