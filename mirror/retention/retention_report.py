"""What a round of retention has done, and what it left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from mirror.collection.collection_report import UnreadNotes
from mirror.values.json_form import CAMEL_CASE, JsonForm, Moment


@dataclass(slots=True)
class RetentionReport(UnreadNotes):
    """One round. Times are in epoch seconds. Repositories that could not be read lose nothing.

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
    #: Rounds in a row that have failed, including this one.
    failures: int = 0

    def to_json(self) -> dict[str, Any]:
        """The form that is stored."""
        return _REPORT.to_json(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any] | None) -> RetentionReport | None:
        """Read it back; None if there is none."""
        return _REPORT.from_json(stored)


_REPORT: Final = JsonForm(RetentionReport)
