"""What retention remembers of a repository from round to round.

    without a tag ── a round sees it ──> marked, since then ── has a tag again, or is gone ──> forgotten
    chosen to go with its tags ── before the first is deleted ──> condemned ── is gone, or pushed ──> forgotten

When a manifest was pushed says nothing about when it lost its tag: the mark does. Marks that are lost begin anew. The
second mark lets the next round finish what an interrupted one has begun, since a manifest whose tags are gone already
is chosen by no rule any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.hosted.collection import ClockReading
from mirror.ports import Records
from mirror.values.json_form import CAMEL_CASE, DigestField, JsonForm, Moment


@dataclass(frozen=True, slots=True)
class RepositoryMarks:
    """The marks of one repository: manifests, and since when."""

    __pydantic_config__ = CAMEL_CASE

    untagged: dict[DigestField, Moment] = field(default_factory=dict)
    condemned: dict[DigestField, Moment] = field(default_factory=dict)

    def seen(self, untagged: Iterable[Digest], here: Mapping[Digest, object], now: ClockReading) -> RepositoryMarks:
        """The marks after a look at the repository: these manifests have no tag, and those are `here`. A mark that
        lies in the future was written by a wrong clock: the wait begins anew.
        """
        marked = {digest: self.untagged.get(digest, now.later) for digest in untagged}
        return RepositoryMarks(
            {digest: since if since <= now.later else now.later for digest, since in marked.items()},
            {digest: since for digest, since in self.condemned.items() if digest in here},
        )


class RetentionMarks:
    """The marks of all repositories. All calls block, and raise `StoreError`."""

    def __init__(self, records: Records) -> None:
        self._records = records

    def __repr__(self) -> str:
        return "<RetentionMarks>"

    def get(self, repo: Repo) -> RepositoryMarks:
        """The marks of a repository; none if they were lost."""
        return _MARKS.from_json(self._records.get(str(repo))) or RepositoryMarks()

    def put(self, repo: Repo, marks: RepositoryMarks) -> None:
        """Write the marks of a repository. Durable on return."""
        if marks == RepositoryMarks():
            self._records.drop(str(repo))
        else:
            self._records.put(str(repo), _MARKS.to_json(marks))


_MARKS: Final = JsonForm(RepositoryMarks)
