"""Whatever the rules and the repository: what a keep rule names stays, with everything that it needs.

The rules are read again here, one tag at a time and without regard to speed, and compared with what is decided.
"""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, Final

from hypothesis import given, settings
from hypothesis import strategies as st

from mirror.oci.attachments import is_attached, referrers_tag, signature_tag
from mirror.oci.digest import Digest
from mirror.policy.hosted.collection import ClockReading
from mirror.policy.hosted.retention import (
    ManifestFact,
    PullFacts,
    RepositoryFacts,
    RetentionTimes,
    RetentionVerdicts,
    TagFact,
    decide,
)
from mirror.policy.hosted.retention_rules import DeleteRule, Happening, KeepRule, RetentionPolicy, TagChoice

_NOW: Final = 100.0
_TIMES: Final = RetentionTimes(ClockReading(_NOW, _NOW + 1), keep_deleted=5.0, grace=3.0)
_IMAGES: Final = tuple(Digest.of(f"image {number}".encode()) for number in range(6))
#: Names of tags: builds, versions, and what is attached to the first two images.
_NAMES: Final = (
    *("a1", "a2", "b1", "b2", "1.0.0", "v1.0.0", "1.0.1", "1.1.0", "1.1"),
    *(attached(image) for image in _IMAGES[:2] for attached in (signature_tag, referrers_tag)),
)
_PATTERNS: Final = ("*", "a*", "b*", "?1", "1.*", "sha256-*")
#: Times: mostly past, some the same, some in the future.
_PAST: Final = st.integers(80, 104).map(float)
_SECONDS: Final = st.sampled_from([1.0, 5.0, 10.0, 50.0])
_WINDOWS: Final = st.dictionaries(st.sampled_from(Happening), _SECONDS, max_size=2)
_CHOICES: Final = st.lists(st.sampled_from(_PATTERNS), min_size=1, max_size=2).map(
    lambda found: TagChoice(tuple(found))
)
_KEEP: Final = st.builds(
    KeepRule,
    _CHOICES,
    st.none() | st.integers(1, 3),
    st.sampled_from(Happening),
    st.none() | st.integers(1, 2),
    st.booleans(),
    _WINDOWS,
)
_DELETE: Final = st.builds(DeleteRule, _CHOICES, _WINDOWS)
_POLICY: Final = st.builds(
    RetentionPolicy,
    st.just(("**",)),
    st.lists(_KEEP, max_size=2).map(tuple),
    st.lists(_DELETE, max_size=2).map(tuple),
    st.none() | _SECONDS,
)
_POLICIES: Final = st.lists(_POLICY, min_size=1, max_size=2)


@st.composite
def _repositories(draw: st.DrawFn) -> RepositoryFacts:
    here = draw(st.sets(st.sampled_from(_IMAGES), min_size=1))
    manifests = {}
    for number, digest in enumerate(_IMAGES):
        if digest in here:
            # an index cannot name itself, also not through others: its digest would have to be known before
            later = _IMAGES[number + 1 :]
            manifests[digest] = ManifestFact(
                digest,
                draw(_PAST),
                tuple(draw(st.sets(st.sampled_from(later), max_size=2))) if later else (),
                draw(st.none() | st.sampled_from(later)) if later else None,
                draw(st.none() | st.none() | _PAST),
                draw(st.sampled_from(["", "", "", "pinned"])),
            )
    tags = [
        TagFact(
            name,
            draw(st.sampled_from(sorted(here))),
            draw(_PAST),
            draw(st.none() | st.none() | _PAST),
            draw(st.sampled_from(["", "", "", "frozen"])),
        )
        for name in sorted(draw(st.sets(st.sampled_from(_NAMES))))
    ]
    references = st.sampled_from([*_NAMES, *map(str, _IMAGES)])
    pulls = PullFacts(draw(st.none() | _PAST), draw(st.dictionaries(references, _PAST, max_size=3)))
    marks = st.dictionaries(st.sampled_from(_IMAGES), _PAST, max_size=2)
    return RepositoryFacts(tags, manifests, pulls, draw(marks), draw(marks))


# ------------------------------------------------------------------------------------------- the rules, read again


def _chosen(choice: TagChoice, tag: str) -> bool:
    return any(fnmatchcase(tag, pattern) for pattern in choice.patterns)


def _used(facts: RepositoryFacts, tag: TagFact) -> float:
    """The last time that a tag was surely of use."""
    pending, below = [tag.digest], {tag.digest}
    while pending:
        children = facts.manifests[pending.pop()].children
        pending += [child for child in children if child in facts.manifests and child not in below]
        below.update(children)
    times = [facts.pulls.times.get(name, 0.0) for name in (tag.name, *map(str, below))]
    return max(tag.tagged_at, facts.manifests[tag.digest].pushed_at, *times)


def _time(facts: RepositoryFacts, tag: TagFact, what: Happening) -> float:
    if what is Happening.PULLED:
        return _used(facts, tag)
    return tag.tagged_at if what is Happening.TAGGED else facts.manifests[tag.digest].pushed_at


def _surely_past(facts: RepositoryFacts, tag: TagFact, what: Happening, seconds: float) -> bool:
    moments = [_time(facts, tag, what)]
    if what is Happening.PULLED:
        if facts.pulls.since is None:
            return False
        moments.append(facts.pulls.since)
    return all(moment <= _NOW - seconds for moment in moments)


def _named(facts: RepositoryFacts, rule: KeepRule, tag: TagFact) -> bool:
    """Whether a keep rule names a tag for certain."""
    if not _chosen(rule.tags, tag.name):
        return False
    if any(_NOW - _time(facts, tag, what) >= seconds for what, seconds in rule.within.items()):
        return False
    rivals = [each for each in facts.tags if _chosen(rule.tags, each.name) and not is_attached(each.name)]
    mine = _time(facts, tag, rule.by)
    if rule.newest is not None and sum(_time(facts, each, rule.by) > mine for each in rivals) >= rule.newest:
        return False
    if rule.newest_of_each_minor is not None:
        numbers = _numbers(tag.name)
        if numbers is None:
            return False
        series = {found for each in rivals if (found := _numbers(each.name)) and len(found) == 3}
        newer = [each for each in series if each[:2] == numbers[:2] and each > numbers]
        if len(numbers) == 3 and len(newer) >= rule.newest_of_each_minor:
            return False
    return True


def _numbers(tag: str) -> tuple[int, ...] | None:
    parts = tag.lstrip("v").split(".")
    return tuple(map(int, parts)) if all(part.isdecimal() for part in parts) else None


def _needed(facts: RepositoryFacts, verdicts: RetentionVerdicts) -> set[Digest]:
    """Everything that is reached from a tag that stays, or from a manifest that is protected."""
    pending = [tag.digest for tag in facts.tags if not verdicts.tags[tag.name].goes]
    pending += [each.digest for each in facts.manifests.values() if each.stays]
    needed: set[Digest] = set()
    while pending:
        digest = pending.pop()
        if digest in needed or digest not in facts.manifests:
            continue
        needed.add(digest)
        pending += facts.manifests[digest].children
        pending += [each.digest for each in facts.manifests.values() if each.subject == digest]
        attached = {signature_tag(digest), referrers_tag(digest)}
        pending += [tag.digest for tag in facts.tags if tag.name in attached]
    return needed


# ------------------------------------------------------------------------------------------------- what must hold


@settings(max_examples=200)
@given(_repositories(), _POLICIES)
def test_what_a_keep_rule_names_stays(facts: RepositoryFacts, policies: list[RetentionPolicy]) -> None:
    """And a tag goes only because a delete rule names it for certain."""
    verdicts = decide(facts, policies, _TIMES)
    for tag in facts.tags:
        if not verdicts.tags[tag.name].goes:
            continue
        assert not tag.stays
        if is_attached(tag.name):
            continue
        assert not any(_named(facts, rule, tag) for policy in policies for rule in policy.keep)
        assert any(
            _chosen(rule.tags, tag.name)
            and all(_surely_past(facts, tag, what, seconds) for what, seconds in rule.not_within.items())
            for policy in policies
            for rule in policy.delete
        )


@settings(max_examples=200)
@given(_repositories(), _POLICIES)
def test_what_stays_is_whole(facts: RepositoryFacts, policies: list[RetentionPolicy]) -> None:
    """Its manifest, those below it, those about it, and what is attached to it."""
    verdicts = decide(facts, policies, _TIMES)
    going = set(verdicts.manifests_going)
    assert not going & _needed(facts, verdicts)
    for manifest in facts.manifests.values():
        if manifest.digest not in going:
            assert not going & {*manifest.children}
        if manifest.subject in facts.manifests and manifest.subject not in going:
            assert manifest.digest not in going
    for tag in facts.tags:
        # no tag is left that points to nothing
        assert verdicts.tags[tag.name].goes or tag.digest not in going


@given(_repositories(), _POLICIES)
def test_what_cannot_be_read_keeps_everything(facts: RepositoryFacts, policies: list[RetentionPolicy]) -> None:
    """Whatever it is."""
    verdicts = decide(replace(facts, unread="something"), policies, _TIMES)
    assert not verdicts.tags_going
    assert not verdicts.manifests_going


@given(_repositories(), _POLICIES, _KEEP)
def test_one_more_rule_that_keeps(facts: RepositoryFacts, policies: list[RetentionPolicy], rule: KeepRule) -> None:
    """Never lets more go."""
    before = decide(facts, policies, _TIMES)
    after = decide(facts, [*policies, RetentionPolicy(("**",), (rule,))], _TIMES)
    assert set(after.tags_going) <= set(before.tags_going)
    assert set(after.manifests_going) <= set(before.manifests_going)


@given(_repositories(), _POLICIES)
def test_less_known_is_less_deleted(facts: RepositoryFacts, policies: list[RetentionPolicy]) -> None:
    """If pull times or marks are lost, or a clock is uncertain, no more goes than before."""
    before = decide(facts, policies, _TIMES)
    doubtful: list[Any] = [
        (replace(facts, pulls=PullFacts()), _TIMES),
        (replace(facts, untagged_since={}, condemned={}), _TIMES),
        (facts, replace(_TIMES, now=ClockReading(_NOW - 20, _NOW + 1))),
    ]
    for known, times in doubtful:
        after = decide(known, policies, times)
        assert set(after.tags_going) <= set(before.tags_going)
        assert set(after.manifests_going) <= set(before.manifests_going)


@given(_repositories(), _POLICIES)
def test_without_a_delete_rule_nothing_goes(facts: RepositoryFacts, policies: list[RetentionPolicy]) -> None:
    """The default keeps; only what an interrupted round began is ended, and what no tag reaches."""
    quiet = [replace(policy, delete=(), delete_untagged_after=None) for policy in policies]
    attached = [tag for tag in facts.tags if is_attached(tag.name)]
    plain = replace(facts, condemned={}, tags=[tag for tag in facts.tags if tag not in attached])
    verdicts = decide(plain, quiet, _TIMES)
    assert not verdicts.tags_going
    assert not verdicts.manifests_going
