"""What a round of retention has done, and what it left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from mirror.collection.collection_report import Unread
from mirror.values.json_form import CAMEL_CASE, JsonForm, Moment

#: The most repositories that a report names as unread.
_MOST_NAMED: Final = 50


@dataclass(slots=True)
class RetentionReport:
    """One round. Times are in epoch seconds.

    `by` is who asked for it. `rules` tells the rules of two rounds apart. `after` is the last repository that was done:
    an interrupted round goes on behind it. `complete` is true if every repository was judged.
    """

    __pydantic_config__ = CAMEL_CASE

    begun_at: Moment
    by: str = ""
    rules: str = ""
    ended_at: Moment | None = None
    complete: bool = False
    resumed: int = 0
    after: str = ""
    repositories: int = 0
    tags: int = 0
    manifests: int = 0
    #: What was to go and stays, because a client has changed it meanwhile.
    stayed: int = 0
    #: Repositories that could not be read, and so lost nothing.
    unread: list[Unread] = field(default_factory=list)
    unread_count: int = 0
    #: Rounds in a row that have failed, including this one.
    failures: int = 0

    def note_unread(self, what: str, reason: str) -> None:
        """Notes something that cannot be read, and so keeps what it may name."""
        self.unread_count += 1
        if len(self.unread) < _MOST_NAMED:
            self.unread.append(Unread(what, reason))

    def to_json(self) -> dict[str, Any]:
        """The form that is stored."""
        return _REPORT.to_json(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any] | None) -> RetentionReport | None:
        """Read it back; None if there is none."""
        return _REPORT.from_json(stored)


_REPORT: Final = JsonForm(RetentionReport)
