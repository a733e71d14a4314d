"""The replication rules of the configuration, and what the disk has on what each of them has put into the other
registry.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal

from typing_extensions import TypedDict

from mirror.errors import DigestInvalid
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.hosted.replication_steps import LastSeen, TagRules
from mirror.policy.routing import compile_pattern
from mirror.policy.schedule import Plan, spread
from mirror.ports import Lease, Records
from mirror.prefetch.progress import ProgressJson
from mirror.prefetch.sync_rules import RunState
from mirror.values.json_types import Count, Timestamp, about


@dataclass(frozen=True, slots=True)
class ReplicationRule:
    """A rule of the configuration (`[[replication]]`): repositories of a hosted registry that match `match` go to the
    registry `to`, where their names begin differently by `rename`.

    `on_push`: changes are looked for all the time, and not only by the `plan` of full comparisons. `rate` is in bytes
    per second, None: no limit. `sealed`: the other registry is never contacted, so the rule never runs.
    """

    name: str
    match: str
    to: str
    plan: Plan
    tags: TagRules = field(default_factory=TagRules)
    rename: Mapping[str, str] = field(default_factory=dict)
    on_push: bool = True
    referrers: bool = True
    rate: float | None = None
    sealed: bool = False
    _pattern: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_pattern", compile_pattern(self.match))

    def covers(self, repo: Repo) -> bool:
        """Whether the rule is about this repository."""
        return self._pattern.fullmatch(str(repo)) is not None

    @property
    def what(self) -> str:
        """A hash of where the rule puts what. If it changes, nothing that was put before counts."""
        text = f"{self.match} {self.to} {sorted(self.rename.items())}"
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    @property
    def lock(self) -> str:
        """The name of the lock that a run of this rule holds."""
        return replication_lock(self.name)

    def jitter(self, seed: str) -> float:
        """A fraction from 0 to 1, always the same for this rule and seed."""
        return spread(f"{seed} {self.name}")


def replication_lock(name: str) -> str:
    """The lock of the replication rule of this name."""
    return f"replication-{hashlib.blake2b(name.encode(), digest_size=8).hexdigest()}"


class ReplicationRuleJson(TypedDict):
    """A replication rule, with its last result and next comparison."""

    name: str
    repositories: Annotated[str, about("The pattern of the hosted repositories.")]
    to: Annotated[str, about("The other registry.")]
    tags: list[str]
    on: Annotated[Literal["push", "schedule"], about("`push`: changes are looked for all the time as well.")]
    schedule: Annotated[str, about("When everything is compared.")]
    deletes: Literal["never", "callers", "all"]
    overwrite: bool
    state: RunState
    progress: ProgressJson | None
    started: Annotated[Timestamp | None, about("When the last run began.")]
    ended: Timestamp | None
    started_by: Annotated[str | None, about("`push`, `schedule`, `job` or `hand`.")]
    result: Annotated[
        dict[str, Any] | None,
        about("Of the last run; `error` and `failures` say why it failed, `conflicts` which tags were left alone."),
    ]
    consecutive_failures: Count
    last_success: Timestamp | None
    next_run: Annotated[Timestamp | None, about("When everything is compared next.")]


@dataclass(slots=True)
class SeenTags:
    """What one rule knows of the tags of one repository in the other registry."""

    tags: dict[str, LastSeen] = field(default_factory=dict)

    @property
    def put(self) -> int:
        """How many of them the rule has put there."""
        return sum(seen.put for seen in self.tags.values())


class SeenRecords:
    """The `SeenTags` of all rules and repositories on the disk. All calls block, and raise `StoreError`.

        absent ── a tag was put, or found the same ──> present ── another target, or other names ──> counts as absent

    A record that is lost makes the rule more careful: it moves and deletes only what it finds in its record.
    """

    def __init__(self, records: Records) -> None:
        self._records = records

    def __repr__(self) -> str:
        return f"<SeenRecords {self._records!r}>"

    def under(self, lease: Lease) -> SeenRecords:
        """The same records, for the run that has this lock."""
        return SeenRecords(lease.fence(self._records))

    def get(self, rule: ReplicationRule, repo: Repo) -> SeenTags:
        """What is known; nothing if there is no record, or if it is about another target."""
        record = self._records.get(_key(rule, repo))
        if record is None or record.get("what") != rule.what or not isinstance(tags := record.get("tags"), dict):
            return SeenTags()
        return SeenTags({tag: seen for tag, written in tags.items() if (seen := _read(written)) is not None})

    def put(self, rule: ReplicationRule, repo: Repo, seen: SeenTags) -> None:
        """Write it."""
        tags = {tag: [str(each.digest), each.put, each.content] for tag, each in sorted(seen.tags.items())}
        self._records.put(_key(rule, repo), {"what": rule.what, "tags": tags})


_FIELDS: Final = 3


def _key(rule: ReplicationRule, repo: Repo) -> str:
    return f"{rule.name} {repo}"


def _read(written: object) -> LastSeen | None:
    if not isinstance(written, list) or len(written) != _FIELDS:
        return None
    try:
        return LastSeen(Digest.parse(str(written[0])), written[1] is True, str(written[2]))
    except DigestInvalid:
        return None
