"""When tags and manifests of hosted repositories were pulled, for rules that ask for it.

    a pull ── note() ──> in memory ── at most once a minute, behind the answer ──> the repository's record
                            └─ too many, or the disk fails for long ──> lost: what is recorded begins anew

Each worker writes what it has seen, and keeps the later time where another one has written too. A worker that is killed
loses the notes of the last minute. A time is written only if it is ten minutes later than the one that is recorded; so
much is added when it is read.

`since` says from when on nothing is missing. It begins anew if the record was lost, or if no rule asked for pulls of
the repository for a while.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from mirror import telemetry
from mirror.errors import RecordChanged, StoreError
from mirror.oci.digest import Digest
from mirror.oci.reference import Reference, Repo, read_repo
from mirror.policy.hosted.collection import ClockReading
from mirror.policy.hosted.retention import PullFacts
from mirror.policy.hosted.retention_rules import RetentionRules
from mirror.policy.routing import compile_pattern
from mirror.ports import ABSENT, Records
from mirror.rounds import run_rounds
from mirror.values.json_form import CAMEL_CASE, JsonForm, Moment

T = TypeVar("T")

#: Seconds between two times that are recorded of one tag or manifest.
_RESOLUTION: Final = 600.0
#: Seconds between two writes of one worker.
_WRITE_EVERY: Final = 60.0
#: Times that one worker remembers until they are written.
_MOST: Final = 200_000
_TRIES: Final = 20
_RULES: Final = "recorded"


@dataclass(frozen=True, slots=True)
class _Recorded:
    """The record of one repository: times by tag or digest, complete since a moment."""

    __pydantic_config__ = CAMEL_CASE

    since: Moment
    times: dict[str, Moment] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Asked:
    """Since when pulls are recorded, by the pattern of the rule that asks for them."""

    patterns: dict[str, Moment] = field(default_factory=dict)


_RECORDED: Final = JsonForm(_Recorded)
_ASKED: Final = JsonForm(_Asked)


class PullNotes:
    """The pulls that this worker sees."""

    def __init__(
        self,
        records: Records,
        rules: RetentionRules,
        now: Callable[[], float],
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`now` is in epoch seconds."""
        self._records = records
        self._rules = rules
        self._now = now
        self._sleep = sleep
        self._registries = frozenset(rules.registries_with_policies)
        #: By the name of a repository: the repository, if pulls from it are recorded.
        self._asked: dict[str, Repo | None] = {}
        self._lock = threading.Lock()
        self._noted: dict[Repo, dict[str, float]] = {}
        self._count = 0
        #: Repositories of which notes were lost.
        self._holes: set[Repo] = set()

    def __repr__(self) -> str:
        return f"<PullNotes {self._count}>"

    @property
    def asked(self) -> bool:
        """Whether any rule asks for pulls."""
        return any(policy.asks_for_pulls for each in self._rules.registries.values() for policy in each.policies)

    def listen(self, what: telemetry.Notice, fields: Mapping[str, Any]) -> None:
        """The listener of notices. What the mirror reads for itself is not among them."""
        if what is telemetry.Notice.MANIFEST_ANSWERED and fields["digest"] is not None:
            self.note(fields["repository"], fields["reference"], fields["digest"])

    def note(self, repository: str, reference: Reference, digest: Digest) -> None:
        """Notes that a client got a manifest, or learned by HEAD that it is there. Cheap, and never raises."""
        if repository.partition("/")[0] not in self._registries:
            return
        if repository not in self._asked:
            # clients cannot make this grow: only repositories that have manifests are noted
            found = read_repo(repository)
            self._asked[repository] = found if found is not None and self._rules.asks_for_pulls(found) else None
        repo = self._asked[repository]
        if repo is None:
            return
        now = self._now()
        with self._lock:
            noted = self._noted.setdefault(repo, {})
            before = len(noted)
            noted[str(reference)] = noted[str(digest)] = now
            self._count += len(noted) - before
            if self._count > _MOST:
                self._count -= len(noted)
                del self._noted[repo]
                self._holes.add(repo)

    async def run(self) -> None:
        """Writes what was noted, every minute, until cancelled."""
        if not self.asked:
            return
        has_begun = False

        async def write() -> None:
            nonlocal has_begun
            if has_begun:
                await asyncio.to_thread(self.flush)
            else:
                await asyncio.to_thread(self.begin)
                has_begun = True

        await run_rounds(
            write,
            _WRITE_EVERY,
            failed="pull times not written",
            crashed="writing of pull times crashed",
            sleep=self._sleep,
        )

    def begin(self) -> None:
        """Blocking: notes for which patterns pulls are recorded from now on. Raises `StoreError`."""
        asking = {
            f"{name}/{pattern}"
            for name, registry in self._rules.registries.items()
            for policy in registry.policies
            if policy.asks_for_pulls
            for pattern in policy.repositories
        }

        def change(asked: _Asked | None) -> _Asked | None:
            known, now = asked.patterns if asked else {}, self._now()
            wanted = {pattern: min(known.get(pattern, now), now) for pattern in asking}
            return _Asked(wanted) if wanted != known else None

        _change(self._records, _RULES, _ASKED, change)

    def flush(self) -> None:
        """Blocking: writes what was noted. What cannot be written is kept for the next time."""
        with self._lock:
            noted, self._noted, self._count = self._noted, {}, 0
            holes, self._holes = self._holes, set()
        errors: dict[Repo, Exception] = {}
        for repo in {*noted, *holes}:
            try:
                _write(self._records, repo, noted.get(repo, {}), since=self._now() if repo in holes else None)
            except Exception as error:
                # whatever the error: the other repositories are not to blame
                self._put_back(repo, noted.get(repo, {}), lost=repo in holes)
                errors[repo] = error
        _log(errors)

    def _put_back(self, repo: Repo, times: Mapping[str, float], *, lost: bool) -> None:
        with self._lock:
            if lost:
                self._holes.add(repo)
            later = self._noted.setdefault(repo, {})
            before = len(later)
            for reference, at in times.items():
                later.setdefault(reference, at)
            self._count += len(later) - before


def _log(errors: Mapping[Repo, Exception]) -> None:
    """One line for each kind of error: a full disk refuses the records of thousands of repositories, every minute."""
    refused = {repo: error for repo, error in errors.items() if isinstance(error, StoreError)}
    crashed = {repo: error for repo, error in errors.items() if repo not in refused}
    if refused:
        repo, count = next(iter(refused)), len(refused)
        reason = str(refused[repo])
        telemetry.log.warning("pull times not written", repository=str(repo), repositories=count, reason=reason)
    if crashed:
        repo, count = next(iter(crashed)), len(crashed)
        error = crashed[repo]
        telemetry.log.error("writing of pull times crashed", repository=str(repo), repositories=count, exc_info=error)


def _write(records: Records, repo: Repo, times: Mapping[str, float], *, since: float | None = None) -> None:
    """Adds times to the record of a repository. Raises `StoreError`."""

    def change(before: _Recorded | None) -> _Recorded | None:
        # without a record, nobody knows what was pulled until now
        begun = max(times.values(), default=0.0) if before is None else before.since
        known = {} if before is None else before.times
        fresh = {name: at for name, at in times.items() if at - known.get(name, float("-inf")) >= _RESOLUTION}
        if before is not None and not fresh and since is None:
            return None
        return _Recorded(max(begun, since or 0.0), {**known, **fresh})

    _change(records, str(repo), _RECORDED, change)


def _change(records: Records, name: str, form: JsonForm[T], change: Callable[[T | None], T | None]) -> None:
    """Writes what `change` makes of a record, also while other processes write it. `change` gets None without a valid
    record, and returns None if nothing is to be written. Raises `StoreError`.
    """
    for _ in range(_TRIES):
        found = records.versioned(name)
        after = change(form.from_json(found.record) if found else None)
        if after is None:
            return
        with suppress(RecordChanged):
            records.put(name, form.to_json(after), expect=found.version if found else ABSENT)
            return
    raise StoreError(f"the record {name} of pulls was changed all the time")


class PullTimes:
    """The pulls that all workers have recorded. All calls block, and raise `StoreError`."""

    def __init__(self, records: Records) -> None:
        self._records = records

    def __repr__(self) -> str:
        return "<PullTimes>"

    def facts(self, repo: Repo, now: ClockReading) -> PullFacts:
        """What is known about the pulls from a repository."""
        recorded = _RECORDED.from_json(self._records.get(str(repo)))
        asked = _ASKED.from_json(self._records.get(_RULES)) or _Asked()
        begun = [since for pattern, since in asked.patterns.items() if compile_pattern(pattern).fullmatch(str(repo))]
        if recorded is None or not begun:
            return PullFacts()
        latest = now.earlier
        times = {name: at if at > latest else min(at + _RESOLUTION, latest) for name, at in recorded.times.items()}
        return PullFacts(max(recorded.since, min(begun)), times)

    def tidy(self, repo: Repo, here: Collection[str], now: ClockReading) -> None:
        """Forgets what is no longer `here`, and begins a record if there is none. Times that lie in the future were
        written by a wrong clock: they become now.
        """

        def change(before: _Recorded | None) -> _Recorded | None:
            after = _tidied(before, here, now)
            return after if after != before else None

        _change(self._records, str(repo), _RECORDED, change)


def _tidied(before: _Recorded | None, here: Collection[str], now: ClockReading) -> _Recorded:
    if before is None:
        return _Recorded(now.later)
    latest = now.later
    times = {name: min(at, latest) for name, at in before.times.items() if name in here}
    return _Recorded(min(before.since, latest), times)
