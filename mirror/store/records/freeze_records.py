"""Freezes: the tags that must not move. The command line writes them, and every worker reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from mirror.errors import StoreError
from mirror.oci.reference import Repo
from mirror.policy.records import Freeze
from mirror.policy.unreadable_records import UnreadableRecord
from mirror.ports import CheckedRecords
from mirror.values.json_form import JsonForm

_FREEZE: Final = JsonForm(Freeze)


class FreezeRecords:
    """`Freezes` as JSON records, shared by all processes of one store."""

    def __init__(self, records: CheckedRecords) -> None:
        self._records = records

    def __repr__(self) -> str:
        return f"<FreezeRecords in {self._records!r}>"

    def all(self) -> Sequence[Freeze]:
        return self.look()[0]

    def look(self) -> tuple[Sequence[Freeze], Sequence[UnreadableRecord]]:
        return self._records.look(_FREEZE.from_json)

    def get(self, repo: Repo, tag: str) -> Freeze | None:
        key = _key(repo, tag)
        freeze = _FREEZE.from_json(self._records.get(key))
        if freeze is None and self._records.has(key):
            # a frozen tag must not move just because its record is damaged or the disk fails
            raise StoreError(
                f"{repo}:{tag} is frozen, but at what cannot be read: freeze it --at a digest, or unfreeze it"
            )
        return freeze

    def put(self, freeze: Freeze) -> None:
        self._records.put(_key(freeze.repo, freeze.tag), _FREEZE.to_json(freeze))

    def drop(self, repo: Repo, tag: str) -> bool:
        return self._records.drop(_key(repo, tag))


def _key(repo: Repo, tag: str) -> str:
    return f"{repo} {tag}"
