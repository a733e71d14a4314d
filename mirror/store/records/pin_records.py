"""Pins: the images that must not be evicted. They are records of the store, because the index may be lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from mirror.oci.reference import Reference, Repo
from mirror.policy.records import Pin
from mirror.policy.unreadable_records import UnreadableRecord
from mirror.ports import CheckedRecords
from mirror.values.json_form import JsonForm

_PIN: Final = JsonForm(Pin)


class PinRecords:
    """`Pins` as JSON records, shared by all processes of one store."""

    def __init__(self, records: CheckedRecords) -> None:
        self._records = records

    def __repr__(self) -> str:
        return f"<PinRecords in {self._records!r}>"

    def all(self) -> Sequence[Pin]:
        return self.look()[0]

    def look(self) -> tuple[Sequence[Pin], Sequence[UnreadableRecord]]:
        return self._records.look(_PIN.from_json)

    def get(self, repo: Repo, reference: Reference) -> Pin | None:
        return _PIN.from_json(self._records.get(_key(repo, reference)))

    def put(self, pin: Pin) -> None:
        self._records.put(_key(pin.repo, pin.reference), _PIN.to_json(pin))

    def drop(self, repo: Repo, reference: Reference) -> bool:
        return self._records.drop(_key(repo, reference))


def _key(repo: Repo, reference: Reference) -> str:
    return f"{repo} {reference}"
