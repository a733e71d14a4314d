"""What retention decides about one hosted repository. Pure; times are in epoch seconds.

    tag ──┬─ pinned, frozen, immutable, undeleted lately ─────────> stays
          ├─ attached to an image that is here (a signature) ─────> as that image
          ├─ a keep rule names it, or may name it ────────────────> stays
          ├─ a delete rule names it, beyond doubt ────────────────> goes
          └─ no rule names it ────────────────────────────────────> stays

    manifest ──┬─ reached from what stays: its tag, an index that names it, its subject ──> stays
               ├─ reached from a tag that goes: directly, or named by its index ──────────> goes
               ├─ without a tag for longer than `delete_untagged_after` ──────────────────> goes
               └─ otherwise ──────────────────────────────────────────────────────────────> stays

If anything of the repository cannot be read, it may name everything: all stays. A time that is not known, or that lies
in the future because a clock was wrong, fulfils every condition of a keep rule and none of a delete rule; such tags
take no place among the newest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from mirror.oci.attachments import is_attached, tags_about
from mirror.oci.digest import Digest
from mirror.policy.hosted.collection import ClockReading, Waited, waited
from mirror.policy.hosted.retention_rules import DeleteRule, Happening, KeepRule, RetentionPolicy
from mirror.values.durations import format_duration
from mirror.values.tagsets import TagVersion, read_version

#: Who has deleted what retention took away.
RETENTION: Final = "retention"
_INTERRUPTED: Final = "a round of retention was interrupted while it deleted this"


@dataclass(frozen=True, slots=True)
class TagFact:
    """A tag whose manifest is here. `tagged_at`: since when it points there. `stays` is why it stays whatever the rules
    say; empty if they decide.
    """

    name: str
    digest: Digest
    tagged_at: float
    restored_at: float | None = None
    stays: str = ""


@dataclass(frozen=True, slots=True)
class ManifestFact:
    """A manifest. `pushed_at`: when it was last pushed. `stays`: as in `TagFact`."""

    digest: Digest
    pushed_at: float
    children: tuple[Digest, ...] = ()
    subject: Digest | None = None
    restored_at: float | None = None
    stays: str = ""


@dataclass(frozen=True, slots=True)
class PullFacts:
    """When tags and manifests were last pulled, by tag or digest. Pulls before `since` were not recorded; None: nothing
    is known about any pull.
    """

    since: float | None = None
    times: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RepositoryFacts:
    """What a repository has.

    `untagged_since` says since when manifests are known to have no tag. `condemned` are those that a round began to
    delete with their tags, and when: it may have been interrupted. `unread` says what cannot be read; empty: nothing.
    """

    tags: Sequence[TagFact] = ()
    manifests: Mapping[Digest, ManifestFact] = field(default_factory=dict)
    pulls: PullFacts = PullFacts()
    untagged_since: Mapping[Digest, float] = field(default_factory=dict)
    condemned: Mapping[Digest, float] = field(default_factory=dict)
    unread: str = ""


@dataclass(frozen=True, slots=True)
class RetentionTimes:
    """`now`, and the settings that protect what was undeleted (`keep_deleted`) and what is being pushed (`grace`)."""

    now: ClockReading
    keep_deleted: float
    grace: float
    collect_dangling: bool = False


@dataclass(frozen=True, slots=True)
class RetentionVerdict:
    """Whether something goes, and why, or why not."""

    goes: bool
    reason: str


@dataclass(frozen=True, slots=True)
class RetentionVerdicts:
    """What happens to each tag and each manifest of a repository."""

    tags: Mapping[str, RetentionVerdict]
    manifests: Mapping[Digest, RetentionVerdict]

    @property
    def tags_going(self) -> list[str]:
        """The tags that go, sorted."""
        return sorted(tag for tag, verdict in self.tags.items() if verdict.goes)

    @property
    def manifests_going(self) -> list[Digest]:
        """The manifests that go, in no order."""
        return [digest for digest, verdict in self.manifests.items() if verdict.goes]


def untagged(facts: RepositoryFacts) -> set[Digest]:
    """The manifests that nothing holds: no tag points to them, no index names them, and they are about no subject."""
    held = {tag.digest for tag in facts.tags}
    held.update(child for manifest in facts.manifests.values() for child in manifest.children)
    return {each.digest for each in facts.manifests.values() if each.digest not in held and each.subject is None}


def decide(facts: RepositoryFacts, policies: Sequence[RetentionPolicy], times: RetentionTimes) -> RetentionVerdicts:
    """What happens to a repository to which these policies apply. All of them do: what one of them keeps stays."""
    if facts.unread:
        stays = RetentionVerdict(False, f"{facts.unread} cannot be read, and may name it")
        return RetentionVerdicts(
            dict.fromkeys((tag.name for tag in facts.tags), stays), dict.fromkeys(facts.manifests, stays)
        )
    decision = _Decision(facts, policies, times)
    return RetentionVerdicts(decision.tags, decision.decide_manifests())


class _Decision:
    def __init__(self, facts: RepositoryFacts, policies: Sequence[RetentionPolicy], times: RetentionTimes) -> None:
        self._facts = facts
        self._times = times
        self._policies = policies
        self._ages = _Ages(facts, times.now)
        #: Attached tags, by the image that they are about.
        self._attached: dict[Digest, list[TagFact]] = {}
        self._referrers: dict[Digest, list[Digest]] = {}
        for manifest in facts.manifests.values():
            if manifest.subject is not None:
                self._referrers.setdefault(manifest.subject, []).append(manifest.digest)
        attached = self._find_attached()
        judged = [tag for tag in facts.tags if tag.name not in attached]
        self.tags = self._judge(judged)
        for tag in facts.tags:
            if tag.name in attached:
                stays = tag.stays or self._undeleted(tag.restored_at)
                self.tags[tag.name] = RetentionVerdict(not stays, stays or "what it is attached to goes")

    # --------------------------------------------------------------------------------------------------------- tags

    def _find_attached(self) -> set[str]:
        """The names of tags that are about an image which is here."""
        by_name = {tag.name: tag for tag in self._facts.tags if is_attached(tag.name)}
        names: set[str] = set()
        for digest in self._facts.manifests if by_name else ():
            found = [by_name[name] for name in tags_about(digest) if name in by_name]
            if found:
                self._attached[digest] = found
                names.update(tag.name for tag in found)
        return names

    def _judge(self, tags: Sequence[TagFact]) -> dict[str, RetentionVerdict]:
        counted = [tag for tag in tags if not is_attached(tag.name)]
        rules = [rule for policy in self._policies for rule in policy.keep]
        keeps = [(rule, _named_by(rule, tags, counted, self._ages)) for rule in rules]
        deletes = [rule for policy in self._policies for rule in policy.delete]
        return {tag.name: self._verdict(tag, keeps, deletes) for tag in tags}

    def _verdict(
        self, tag: TagFact, keeps: Iterable[tuple[KeepRule, Mapping[str, bool | None]]], deletes: Iterable[DeleteRule]
    ) -> RetentionVerdict:
        manifest = self._facts.manifests.get(tag.digest)
        stays = tag.stays or self._undeleted(tag.restored_at)
        if manifest is not None:
            stays = stays or manifest.stays or self._undeleted(manifest.restored_at)
        if stays:
            return RetentionVerdict(False, stays)
        if is_attached(tag.name):
            if manifest is not None and self._is_condemned(manifest):
                return RetentionVerdict(True, _INTERRUPTED)
            return RetentionVerdict(False, "the image that it is about is not here")
        for rule, named in keeps:
            if (named_so := named[tag.name]) is not False:
                return RetentionVerdict(False, f"keep: {rule}" + ("" if named_so else " (not certain, so it stays)"))
        for deletion in deletes:
            if deletion.tags.has(tag.name) and self._ages.all_past(tag, deletion.not_within):
                return RetentionVerdict(True, f"delete: {deletion}")
        return RetentionVerdict(False, "no delete rule names it")

    def _is_condemned(self, manifest: ManifestFact) -> bool:
        since = self._facts.condemned.get(manifest.digest)
        return since is not None and manifest.pushed_at <= since

    def _undeleted(self, restored_at: float | None) -> str:
        if restored_at is None or waited(restored_at, self._times.now, self._times.keep_deleted) is Waited.LONG_ENOUGH:
            return ""
        return f"undeleted less than {format_duration(self._times.keep_deleted)} ago"

    # ---------------------------------------------------------------------------------------------------- manifests

    def decide_manifests(self) -> dict[Digest, RetentionVerdict]:
        """Decides about the manifests, and about the tags that are attached to those that stay."""
        manifests = self._facts.manifests
        going = self._reached_by_what_goes()
        staying: dict[Digest, str] = {}
        left = [
            (each.digest, self._why_left(each))
            for each in manifests.values()
            if each.digest not in going and not self._stays_itself(each)
        ]
        # taken from the end: what is reached from a tag gives that as the reason
        waiting = [
            *left,
            *((each.digest, stays) for each in manifests.values() if (stays := self._stays_itself(each))),
            *((tag.digest, f"tag {tag.name}") for tag in self._facts.tags if not self.tags[tag.name].goes),
        ]
        while waiting:
            digest, why = waiting.pop()
            if digest in staying or digest not in manifests:
                continue
            staying[digest] = why
            waiting += [(child, f"named by {digest}") for child in manifests[digest].children]
            waiting += [(referrer, f"about {digest}") for referrer in self._referrers.get(digest, ())]
            for tag in self._attached.get(digest, ()):
                if self.tags[tag.name].goes:
                    self.tags[tag.name] = RetentionVerdict(False, f"attached to {digest}")
                    waiting.append((tag.digest, f"tag {tag.name}"))
        return {
            digest: RetentionVerdict(False, staying[digest])
            if digest in staying
            else RetentionVerdict(True, going[digest])
            for digest in manifests
        }

    def _stays_itself(self, manifest: ManifestFact) -> str:
        return manifest.stays or self._undeleted(manifest.restored_at)

    def _why_left(self, manifest: ManifestFact) -> str:
        if manifest.subject is not None:
            return f"about {manifest.subject}; collection decides about such (dangling_referrers)"
        return "it has no tag, and no rule deletes it yet"

    def _reached_by_what_goes(self) -> dict[Digest, str]:
        """The manifests that may go, and why; some of them are reached by what stays as well."""
        going: dict[Digest, str] = {}
        for tag in self._facts.tags:
            if self.tags[tag.name].goes:
                referrers = self._times.collect_dangling or not is_attached(tag.name)
                self._add(going, tag.digest, f"tag {tag.name} goes", referrers=referrers)
        for digest in self._facts.condemned:
            manifest = self._facts.manifests.get(digest)
            if manifest is not None and self._is_condemned(manifest):
                self._add(going, digest, _INTERRUPTED)
        after = [policy.delete_untagged_after for policy in self._policies if policy.delete_untagged_after is not None]
        if after:
            for digest in untagged(self._facts):
                if self._is_untagged_for(digest, max(after)):
                    self._add(going, digest, f"untagged for more than {format_duration(max(after))}")
        return going

    def _is_untagged_for(self, digest: Digest, least: float) -> bool:
        since = self._facts.untagged_since.get(digest)
        pushed_at = self._facts.manifests[digest].pushed_at
        return since is not None and all(
            waited(moment, self._times.now, least) is Waited.LONG_ENOUGH for moment in (since, pushed_at)
        )

    def _add(self, going: dict[Digest, str], root: Digest, why: str, *, referrers: bool = True) -> None:
        """Adds a manifest and everything below it. `referrers`: also manifests that are about a subject."""
        waiting = [(root, why)]
        while waiting:
            digest, why = waiting.pop()
            manifest = self._facts.manifests.get(digest)
            if manifest is None or digest in going:
                continue
            going[digest] = why
            for child in manifest.children:
                named = self._facts.manifests.get(child)
                if named is None or (named.subject is not None and not referrers):
                    continue
                if not self._is_pushed_again(named, manifest):
                    waiting.append((child, f"named by {digest}, which goes"))

    def _is_pushed_again(self, child: ManifestFact, index: ManifestFact) -> bool:
        """Whether the child was pushed since the index, and lately: another index may be about to come."""
        age = waited(child.pushed_at, self._times.now, self._times.grace)
        return child.pushed_at > index.pushed_at and age is not Waited.LONG_ENOUGH


# -------------------------------------------------------------------------------------------------------------- rules


class _Ages:
    """When things happened to the tags of a repository."""

    def __init__(self, facts: RepositoryFacts, now: ClockReading) -> None:
        self._facts = facts
        self._now = now
        self._pulled: dict[Digest, float | None] = {}

    def is_past(self, tag: TagFact, what: Happening, least: float) -> bool | None:
        """Whether it happened longer ago than `least`; None if that is not certain."""
        if (moment := self.moment(tag, what)) is None:
            return None
        age = waited(moment, self._now, least)
        if age is Waited.LONG_ENOUGH and what is Happening.PULLED:
            # until then, it may have been pulled without a record
            since = self._facts.pulls.since
            age = Waited.UNKNOWN if since is None else waited(since, self._now, least)
            return True if age is Waited.LONG_ENOUGH else None
        return None if age is Waited.UNKNOWN else age is Waited.LONG_ENOUGH

    def all_past(self, tag: TagFact, least: Mapping[Happening, float]) -> bool:
        """Whether everything happened longer ago than that, beyond doubt."""
        return all(self.is_past(tag, what, seconds) is True for what, seconds in least.items())

    def rank(self, tag: TagFact, by: Happening) -> float | None:
        """A number that is larger the later it happened; None if that is not certain."""
        moment = self.moment(tag, by)
        if moment is None or moment > self._now.later:
            return None
        if by is Happening.PULLED:
            since = self._facts.pulls.since
            # what was not pulled since pulls are recorded may have been pulled until then
            return None if since is None else max(moment, since)
        return moment

    def moment(self, tag: TagFact, what: Happening) -> float | None:
        """When it last happened, as far as that was recorded. A push counts as a pull: what was pushed and not yet
        pulled is needed soon.
        """
        manifest = self._facts.manifests.get(tag.digest)
        if what is Happening.TAGGED:
            return tag.tagged_at
        if manifest is None:
            return None
        if what is Happening.PUSHED:
            return manifest.pushed_at
        times = [tag.tagged_at, manifest.pushed_at, self._facts.pulls.times.get(tag.name), self._pulled_at(tag.digest)]
        return max(time for time in times if time is not None)

    def _pulled_at(self, root: Digest) -> float | None:
        """When a manifest, or one below it, was last pulled by digest."""
        manifests, waiting = self._facts.manifests, [root]
        while waiting:
            digest = waiting[-1]
            below = manifests[digest].children if digest in manifests else ()
            if digest not in self._pulled:
                self._pulled[digest] = None
                waiting += [each for each in below if each not in self._pulled]
                continue
            waiting.pop()
            times = [self._facts.pulls.times.get(str(digest)), *(self._pulled[each] for each in below)]
            self._pulled[digest] = max((time for time in times if time is not None), default=None)
        return self._pulled[root]


def _named_by(
    rule: KeepRule, tags: Sequence[TagFact], counted: Sequence[TagFact], ages: _Ages
) -> Mapping[str, bool | None]:
    """Which of the tags a rule names; None: perhaps. Only `counted` tags take a place among the newest."""
    answers = {tag.name: rule.tags.has(tag.name) for tag in tags}
    chosen = [tag for tag in counted if answers[tag.name]]
    conditions: list[Mapping[str, bool | None]] = [answers]
    if rule.newest is not None:
        conditions.append(_newest(chosen, rule.newest, rule.by, ages))
    if rule.newest_of_each_minor is not None:
        names = [tag.name for tag in chosen]
        conditions.append(_newest_of_each_minor(names, rule.newest_of_each_minor, prereleases=rule.prereleases))
    for what, least in rule.within.items():
        conditions.append({tag.name: _negated(ages.is_past(tag, what, least)) for tag in chosen})
    return {tag.name: _all(condition.get(tag.name, False) for condition in conditions) for tag in tags}


def _negated(answer: bool | None) -> bool | None:
    return None if answer is None else not answer


def _all(answers: Iterable[bool | None]) -> bool | None:
    """All three-valued answers together: false beats unknown, unknown beats true."""
    certain = True
    for answer in answers:
        if answer is False:
            return False
        certain = certain and answer is True
    return True if certain else None


def _newest(tags: Sequence[TagFact], count: int, by: Happening, ages: _Ages) -> dict[str, bool | None]:
    """The newest of these tags; those that are as old as the last of them count as well."""
    ranks = {tag.name: ages.rank(tag, by) for tag in tags}
    known = sorted((rank for rank in ranks.values() if rank is not None), reverse=True)
    last = known[count - 1] if len(known) >= count else float("-inf")
    return {name: None if rank is None else rank >= last for name, rank in ranks.items()}


def _newest_of_each_minor(tags: Iterable[str], count: int, *, prereleases: bool) -> dict[str, bool | None]:
    """The tags of the newest versions of each minor version. Tags that are no version are not among them."""
    named: dict[str, bool | None] = {}
    minors: dict[tuple[int, ...], dict[Any, list[str]]] = {}
    for tag in tags:
        version = read_version(tag)
        if version is None:
            continue
        if len(version.numbers) < 3 and not version.pre:
            # such as 1.4, which moves with the series
            named[tag] = True
        elif not version.pre or prereleases:
            order = TagVersion(version.numbers, version.pre).order()
            minors.setdefault((*version.numbers, 0)[:2], {}).setdefault(order, []).append(tag)
    for versions in minors.values():
        for order in sorted(versions, reverse=True)[:count]:
            named.update(dict.fromkeys(versions[order], True))
    return named
