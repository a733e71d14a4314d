"""Answers that rest on records of a hosted repository."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mirror.hosting.remembered import Remembrance
from mirror.repository.standing.in_memory import InMemory
from mirror.repository.standing.on_disk import OnDisk


@dataclass(frozen=True, slots=True, repr=False)
class Recorded:
    """An answer of a hosted repository: it stands as long as `records` are true, and what it rests on besides."""

    records: tuple[Remembrance[Any], ...]
    besides: InMemory | OnDisk

    def __repr__(self) -> str:
        return f"<Recorded {self.besides!r}>"

    def stands(self) -> bool:
        """See `Standing`."""
        if not self.besides.stands():
            return False
        # all of them are of one repository, and were remembered at the same count of its changes
        return self.records[0].is_true() and all(record.is_fresh() for record in self.records[1:])

    def used(self) -> None:
        """See `Standing`."""
        self.besides.used()
