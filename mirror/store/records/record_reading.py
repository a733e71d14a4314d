"""How records are read out of a tree.

no record                None
one that does not parse  RecordDamaged: truncated by an old crash, or foreign
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TypeVar

from mirror.errors import RecordDamaged, RequestError
from mirror.oci.digest import Digest
from mirror.oci.reference import check_tag
from mirror.ports import RecordTree, Versioned
from mirror.store.records.record_keys import digest_from

T = TypeVar("T")


def read_record(
    tree: RecordTree, key: str, parse: Callable[[bytes], T | None], what: Callable[[], str]
) -> Versioned[T] | None:
    """The parsed record; None if there is none. `what` names it in messages. Raises `RecordDamaged` if it does not
    parse, `StoreError`.
    """
    found = tree.read(key)
    if found is None:
        return None
    record = parse(found.record)
    if record is None:
        raise RecordDamaged(f"{what()} is damaged", found.version)
    return Versioned(record, found.version)


def digests_in(tree: RecordTree, folder: str) -> Iterator[Digest]:
    """The digests that name records in the folder, in no order. Raises `StoreError`."""
    for name in tree.names(folder):
        if digest := digest_from(name):
            yield digest


def tags_in(tree: RecordTree, folder: str) -> list[str]:
    """The tags that name records in the folder, sorted. Raises `StoreError`."""
    found = []
    for name in tree.names(folder):
        with suppress(RequestError):
            found.append(check_tag(name))
    return sorted(found)
