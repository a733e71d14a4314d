"""Pins on disk: the images that must not be evicted. They are records of the store, because the index may be lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mirror.errors import RequestError
from mirror.oci.reference import Reference, Repo, check_name, check_registry, parse_reference
from mirror.policy.records import Pin
from mirror.policy.unread_notes import UnreadNote
from mirror.store.local.json_records import JsonRecords
from mirror.store.local.layout import Layout


class LocalPins:
    """`Pins` on disk, shared by all processes of one store."""

    def __init__(self, layout: Layout) -> None:
        self._notes = JsonRecords(layout, "pins")

    def all(self) -> Sequence[Pin]:
        return self.look()[0]

    def look(self) -> tuple[Sequence[Pin], Sequence[UnreadNote]]:
        return self._notes.look(_read)

    def get(self, repo: Repo, reference: Reference) -> Pin | None:
        note = self._notes.get(_key(repo, reference))
        return None if note is None else _read(note)

    def put(self, pin: Pin) -> None:
        self._notes.put(
            _key(pin.repo, pin.reference),
            {
                "registry": pin.repo.registry,
                "name": pin.repo.name,
                "reference": str(pin.reference),
                "reason": pin.reason,
                "since": pin.since,
                "until": pin.until,
            },
        )

    def drop(self, repo: Repo, reference: Reference) -> bool:
        return self._notes.drop(_key(repo, reference))


def _key(repo: Repo, reference: Reference) -> str:
    return f"{repo} {reference}"


def _read(note: dict[str, Any]) -> Pin | None:
    try:
        until = note["until"]
        return Pin(
            Repo(check_registry(note["registry"]), check_name(note["name"])),
            parse_reference(note["reference"]),
            str(note["reason"]),
            float(note["since"]),
            None if until is None else float(until),
        )
    except (KeyError, TypeError, ValueError, OverflowError, RequestError):
        return None
