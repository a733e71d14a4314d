"""One repository in a round of retention, or in a plan of one.

facts ── marks written ── decided ──┬─ nothing goes ──> done
                                    └─ condemned ── pulls read again ── deleted in batches ── marks written ──> done
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace

from mirror import telemetry
from mirror.collection.pace import Pace
from mirror.errors import StoreError
from mirror.hosting.parts import HostedParts
from mirror.hosting.retiring import Retired, Retirement, Retiring
from mirror.oci.reference import Repo
from mirror.policy.hosted.collection import ClockReading
from mirror.policy.hosted.retention import (
    PullFacts,
    RepositoryFacts,
    RetentionTimes,
    RetentionVerdicts,
    decide,
    untagged,
)
from mirror.policy.hosted.retention_rules import RetentionPolicy, RetentionRules
from mirror.retention.protected_images import Protected, ProtectedImages
from mirror.retention.pull_notes import PullTimes
from mirror.retention.repository_facts import ReadRepository, in_order, needed_by, read_repository
from mirror.retention.retention_marks import RepositoryMarks, RetentionMarks
from mirror.retention.retention_report import RetentionReport

#: Tags and manifests that are deleted after one look at all tags.
_BATCH = 200


@dataclass(frozen=True, slots=True)
class RepositoryPlan:
    """What would happen to a repository now."""

    repo: Repo
    facts: RepositoryFacts
    verdicts: RetentionVerdicts


@dataclass(frozen=True, slots=True)
class RetentionTools:
    """What retention reads and writes. `now` is the time, as far as it is certain."""

    parts: HostedParts
    rules: RetentionRules
    retiring: Retiring
    protected: ProtectedImages
    pulls: PullTimes
    marks: RetentionMarks
    now: Callable[[], ClockReading]


class RepositoryRetention:
    """Judges one repository."""

    def __init__(self, tools: RetentionTools, repo: Repo, policies: Sequence[RetentionPolicy]) -> None:
        self._tools = tools
        self._repo = repo
        self._policies = policies
        self._registry = tools.rules.registries[repo.registry]
        self._pace = Pace()

    def __repr__(self) -> str:
        return f"<RepositoryRetention {self._repo}>"

    def plan(self, protected: Protected) -> Generator[None, None, RepositoryPlan]:
        """What would happen now. Changes nothing. Raises `StoreError` if the marks cannot be read."""
        read, marks, _ = yield from self._read(protected)
        facts = self._with_marks(read.facts, marks)
        return RepositoryPlan(self._repo, facts, self._decide(facts))

    def steps(self, protected: Protected, report: RetentionReport) -> Generator[None]:
        """Deletes what the rules name. What happens goes into the report. Raises `StoreError` if something cannot be
        read: what is left is left alone then.
        """
        read, marks, before = yield from self._read(protected)
        if read.facts.unread:
            raise StoreError(read.facts.unread)
        if marks != before:
            self._tools.marks.put(self._repo, marks)
        if self._asks_for_pulls:
            here = {*read.tags, *map(str, read.manifests)}
            self._tools.pulls.tidy(self._repo, here, self._tools.now())
        facts = self._with_marks(read.facts, marks)
        verdicts = self._decide(facts)
        if verdicts.tags_going or verdicts.manifests_going:
            yield from self._delete(read, facts, verdicts, report)
        elif marks.condemned:
            self._tools.marks.put(self._repo, replace(marks, condemned={}))

    def _read(
        self, protected: Protected
    ) -> Generator[None, None, tuple[ReadRepository, RepositoryMarks, RepositoryMarks]]:
        """Reads the repository, and its marks as they are after and before this look."""
        before = self._tools.marks.get(self._repo)
        read = yield from read_repository(self._tools.parts, self._repo, protected, self._pace)
        asked = any(policy.delete_untagged_after is not None for policy in self._policies)
        seen = untagged(read.facts) if asked else ()
        marks = before if read.facts.unread else before.seen(seen, read.facts.manifests, self._tools.now())
        return read, marks, before

    def _with_marks(self, facts: RepositoryFacts, marks: RepositoryMarks) -> RepositoryFacts:
        return replace(facts, pulls=self._pulls(), untagged_since=marks.untagged, condemned=marks.condemned)

    @property
    def _asks_for_pulls(self) -> bool:
        return any(policy.asks_for_pulls for policy in self._policies)

    def _pulls(self) -> PullFacts:
        """Reads the pull times. If they cannot be read, nothing is known of any pull."""
        if not self._asks_for_pulls:
            return PullFacts()
        try:
            return self._tools.pulls.facts(self._repo, self._tools.now())
        except StoreError as error:
            telemetry.log.warning("pull times not read", repository=str(self._repo), reason=str(error))
            return PullFacts()

    def _decide(self, facts: RepositoryFacts, policies: Sequence[RetentionPolicy] | None = None) -> RetentionVerdicts:
        registry = self._registry
        times = RetentionTimes(
            self._tools.now(), registry.keep_deleted, self._tools.rules.grace, registry.collect_dangling
        )
        return decide(facts, self._policies if policies is None else policies, times)

    def _delete(
        self, read: ReadRepository, facts: RepositoryFacts, verdicts: RetentionVerdicts, report: RetentionReport
    ) -> Generator[None]:
        tools, now = self._tools, self._tools.now().later
        # not those that go because they are untagged: a rule that is taken back meanwhile keeps them
        of_tags = self._decide(facts, [replace(policy, delete_untagged_after=None) for policy in self._policies])
        condemned = dict.fromkeys(of_tags.manifests_going, now)
        tools.marks.put(self._repo, RepositoryMarks(dict(facts.untagged_since), condemned))
        # what was pulled, pinned or frozen while all this was read stays
        again = self._decide(self._protected_now(replace(facts, pulls=self._pulls())))
        needed = needed_by(facts)
        manifests = in_order({*verdicts.manifests_going} & {*again.manifests_going}, needed)
        tags = {name: read.tags[name] for name in verdicts.tags_going if again.tags[name].goes}
        retirement = Retirement(tags, {digest: read.manifests[digest] for digest in manifests}, needed)
        retired = Retired()
        try:
            for batch in retirement.batches(_BATCH):
                yield from tools.retiring.steps(
                    self._repo, batch, read.manifests.keys(), retired, keep=self._registry.keep_deleted > 0
                )
        finally:
            self._note(retired, report)
        left = {digest: since for digest, since in facts.untagged_since.items() if digest not in retired.manifests}
        tools.marks.put(self._repo, RepositoryMarks(left))

    def _protected_now(self, facts: RepositoryFacts) -> RepositoryFacts:
        protected = self._tools.protected.look()
        tags = [replace(tag, stays=protected.tag(self._repo, tag.name)) for tag in facts.tags]
        manifests = {
            digest: replace(manifest, stays=protected.manifest(self._repo, digest))
            for digest, manifest in facts.manifests.items()
        }
        return replace(facts, tags=tags, manifests=manifests)

    def _note(self, retired: Retired, report: RetentionReport) -> None:
        report.tags += len(retired.tags)
        report.manifests += len(retired.manifests)
        report.stayed += len(retired.stayed)
        if retired.tags or retired.manifests:
            telemetry.log.info(
                "retention deleted",
                repository=str(self._repo),
                tags=len(retired.tags),
                manifests=len(retired.manifests),
            )


def repositories(parts: HostedParts, rules: RetentionRules) -> list[tuple[Repo, tuple[RetentionPolicy, ...]]]:
    """Blocking: the repositories to which a policy applies, sorted, with their policies. Raises `StoreError`."""
    found = [
        (repo, rules.policies(repo))
        for registry in rules.registries_with_policies
        for repo in parts.records.repositories(registry)
    ]
    return sorted(((repo, policies) for repo, policies in found if policies), key=lambda pair: str(pair[0]))
