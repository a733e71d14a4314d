"""What a sweep of the bucket has done so far."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from mirror.ports import Leftovers, SweptPage
from mirror.values.json_form import CAMEL_CASE, JsonForm, Moment

_AFTER: Final = re.compile("hosted/(sha256|sha512)/([0-9a-f]{2})/")


@dataclass(slots=True)
class SweepReport:
    """One sweep. Times are in epoch seconds, sizes in bytes. While `ended_at` is None, the sweep goes on behind the key
    `after`, in whichever process.
    """

    __pydantic_config__ = CAMEL_CASE

    begun_at: Moment
    ended_at: Moment | None = None
    after: str = ""
    objects: int = 0
    bytes: int = 0
    deleted: int = 0
    deleted_bytes: int = 0
    queued: int = 0
    lost: int = 0
    uploads_aborted: int | None = None
    probes_deleted: int = 0

    def add(self, page: SweptPage) -> None:
        """Adds what was done in a page."""
        self.after = page.after
        self.objects += page.objects
        self.bytes += page.bytes
        self.deleted += page.deleted
        self.deleted_bytes += page.deleted_bytes
        self.queued += page.queued
        self.lost += page.lost

    def end(self, at: float, leftovers: Leftovers) -> None:
        """Notes that everything was looked at."""
        self.ended_at = at
        self.after = ""
        self.uploads_aborted = leftovers.uploads
        self.probes_deleted = leftovers.probes

    @property
    def done(self) -> float:
        """Which part of all digests was looked at, from 0 to 1: digests are spread evenly."""
        if self.ended_at is not None:
            return 1.0
        found = _AFTER.match(self.after)
        if found is None:
            return 0.0
        # nearly all digests are of sha256, and those of sha512 come behind them
        return int(found[2], 16) / 256 if found[1] == "sha256" else 1.0

    def to_json(self) -> dict[str, Any]:
        """Returns the form that is stored."""
        return _REPORT.to_json(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any] | None) -> SweepReport | None:
        """Reads it back; None if there is none."""
        return _REPORT.from_json(stored)


_REPORT: Final = JsonForm(SweepReport)
