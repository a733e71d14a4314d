"""What retention decides about a repository, rule by rule."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.oci.attachments import referrers_tag, signature_tag
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.hosted.collection import ClockReading
from mirror.policy.hosted.retention import (
    ManifestFact,
    PullFacts,
    RepositoryFacts,
    RetentionTimes,
    RetentionVerdicts,
    TagFact,
    decide,
    untagged,
)
from mirror.policy.hosted.retention_rules import (
    DeleteRule,
    Happening,
    KeepRule,
    RegistryRetention,
    RetentionPolicy,
    RetentionRules,
    TagChoice,
)

_DAY = 86400.0
_NOW = 1000 * _DAY
_TIMES = RetentionTimes(ClockReading(_NOW, _NOW), keep_deleted=7 * _DAY, grace=_DAY)
_ALL = DeleteRule(TagChoice(("*",)))


def _digest(name: str) -> Digest:
    return Digest.of(name.encode())


def _days(ages: Mapping[str, float], **more: object) -> RepositoryFacts:
    """A repository with these tags, each with an image of its own that was pushed and tagged so many days ago."""
    tags = [TagFact(name, _digest(name), _NOW - age * _DAY) for name, age in ages.items()]
    manifests = {tag.digest: ManifestFact(tag.digest, tag.tagged_at) for tag in tags}
    return RepositoryFacts(tags, manifests, **more)  # type: ignore[arg-type]


def _decide(
    facts: RepositoryFacts,
    *keep: KeepRule,
    delete: Iterable[DeleteRule] = (_ALL,),
    untagged_after: float | None = None,
    times: RetentionTimes = _TIMES,
) -> RetentionVerdicts:
    return decide(facts, [RetentionPolicy(("**",), keep, tuple(delete), untagged_after)], times)


def _going(facts: RepositoryFacts, *keep: KeepRule, delete: Iterable[DeleteRule] = (_ALL,)) -> str:
    return " ".join(_decide(facts, *keep, delete=delete).tags_going)


_BUILDS = _days({"a": 1, "b": 2, "c": 3, "d": 40})


def test_the_default_keeps() -> None:
    """What no delete rule names stays."""
    verdicts = _decide(_BUILDS, delete=[DeleteRule(TagChoice(("c",)))])
    assert verdicts.tags_going == ["c"]
    assert verdicts.tags["a"].reason == "no delete rule names it"
    assert verdicts.tags["c"].reason == "delete: tags c"
    assert not decide(_BUILDS, [], _TIMES).tags_going


@pytest.mark.parametrize(
    ("rule", "going"),
    [
        (KeepRule(newest=2), "c d"),
        (KeepRule(TagChoice(("b", "c", "d")), newest=2), "a d"),
        (KeepRule(newest=9), ""),
        (KeepRule(within={Happening.PUSHED: 30 * _DAY}), "d"),
        (KeepRule(within={Happening.TAGGED: 2.5 * _DAY}), "c d"),
        (KeepRule(TagChoice(("c", "d")), within={Happening.PUSHED: 30 * _DAY}), "a b d"),
        (KeepRule(newest=1, within={Happening.PUSHED: 0.5 * _DAY}), "a b c d"),
        (KeepRule(TagChoice(regex="[a-c]")), "d"),
        (KeepRule(TagChoice(("?",))), ""),
    ],
)
def test_what_a_rule_keeps(rule: KeepRule, going: str) -> None:
    """All conditions of one rule must hold; patterns choose the tags among which it counts."""
    assert _going(_BUILDS, rule) == going


def test_any_rule_keeps() -> None:
    """Also one of another policy: all that match the repository apply."""
    assert _going(_BUILDS, KeepRule(newest=1), KeepRule(TagChoice(("d",)))) == "b c"
    policies = [
        RetentionPolicy(("**",), (), (_ALL,)),
        RetentionPolicy(("team/*",), (KeepRule(TagChoice(("d",))),)),
        RetentionPolicy(("team/other",), (KeepRule(TagChoice(("a",))),)),
    ]
    rules = RetentionRules({"corp": RegistryRetention(tuple(policies))})
    applying = rules.policies(Repo("corp", "team/app"))
    assert decide(_BUILDS, applying, _TIMES).tags_going == ["a", "b", "c"]
    assert not rules.policies(Repo("other", "team/app"))


def test_a_delete_rule_may_ask_for_age() -> None:
    """Then no keep rule is needed."""
    rule = DeleteRule(TagChoice(("*",)), {Happening.PUSHED: 30 * _DAY})
    assert _going(_BUILDS, delete=[rule]) == "d"
    assert str(rule) == "tags *, not pushed within 30d"


def test_two_of_the_same_age_are_both_among_the_newest() -> None:
    """Nobody can say which of them is older."""
    assert _going(_days({"a": 1, "b": 1, "c": 2}), KeepRule(newest=1)) == "c"


def test_the_newest_of_each_minor_version() -> None:
    """Spellings of one version are one; a tag of a series stays; prereleases only if they are asked for."""
    tags = ["1.0.0", "v1.0.1", "1.0.1", "1.0.2", "1.1.0", "1.2.0-rc1", "1.2.0-rc2", "1.0", "latest", "1.0.10"]
    facts = _days(dict.fromkeys(tags, 1))
    assert _going(facts, KeepRule(newest_of_each_minor=2)) == "1.0.0 1.0.1 1.2.0-rc1 1.2.0-rc2 latest v1.0.1"
    rule = KeepRule(newest_of_each_minor=1, prereleases=True)
    assert _going(facts, rule) == "1.0.0 1.0.1 1.0.2 1.2.0-rc1 latest v1.0.1"
    assert str(rule) == "tags *, the newest 1 of each minor version, prereleases too"


# -------------------------------------------------------------------------------------------------------------- pulls


_PULLED = KeepRule(within={Happening.PULLED: 30 * _DAY})
_OLD = {"a": 100.0, "b": 100.0}


@pytest.mark.parametrize(
    ("pulls", "going"),
    [
        (PullFacts(_NOW - 50 * _DAY, {"a": _NOW - _DAY}), "b"),
        (PullFacts(_NOW - 50 * _DAY, {str(_digest("a")): _NOW - _DAY}), "b"),
        (PullFacts(_NOW - 50 * _DAY, {"a": _NOW - 31 * _DAY}), "a b"),
        (PullFacts(_NOW - 29 * _DAY), ""),
        (PullFacts(None), ""),
        (PullFacts(_NOW + _DAY), ""),
        (PullFacts(_NOW - 50 * _DAY, {"a": _NOW + _DAY}), "b"),
    ],
)
def test_what_was_pulled_lately_stays(pulls: PullFacts, going: str) -> None:
    """By its tag or its digest; and everything, as long as pulls have not been recorded for that long."""
    assert _going(_days(_OLD, pulls=pulls), _PULLED) == going
    never = DeleteRule(TagChoice(("*",)), {Happening.PULLED: 30 * _DAY})
    assert _going(_days(_OLD, pulls=pulls), delete=[never]) == going


def test_a_push_counts_as_a_pull() -> None:
    """What was pushed a moment ago has not been pulled yet."""
    assert _going(_days({"a": 1, "b": 100}, pulls=PullFacts(0.0)), _PULLED) == "b"


def test_the_newest_by_pull() -> None:
    """Those that were not pulled since recording began are equally old; without a recording, all stay."""
    rule = KeepRule(newest=1, by=Happening.PULLED)
    pulls = PullFacts(_NOW - 5 * _DAY, {"b": _NOW - _DAY})
    assert _going(_days({"a": 50, "b": 100, "c": 2, "d": 90}, pulls=pulls), rule) == "a c d"
    assert _going(_days({"a": 50, "b": 100}, pulls=PullFacts(_NOW - _DAY)), rule) == ""
    assert _going(_days({"a": 50, "b": 100}), rule) == ""


def test_a_pull_of_a_platform_is_a_pull_of_the_image() -> None:
    """Clients that know the index pull the platform's manifest by its digest."""
    child, index = _digest("child"), _digest("a")
    facts = _days(_OLD, pulls=PullFacts(0.0, {str(child): _NOW - _DAY}))
    manifests = {
        **facts.manifests,
        index: ManifestFact(index, _NOW - 100 * _DAY, (child,)),
        child: ManifestFact(child, 0.0),
    }
    assert _going(RepositoryFacts(facts.tags, manifests, facts.pulls), _PULLED) == "b"


# ---------------------------------------------------------------------------------------------------- what stays anyway


def test_what_is_protected_stays_and_says_why() -> None:
    """A pin, a freeze, an immutable tag: whatever the rules say."""
    [tag] = _days({"a": 1}).tags
    pinned = TagFact("a", tag.digest, tag.tagged_at, stays="pinned")
    facts = RepositoryFacts([pinned], {tag.digest: ManifestFact(tag.digest, 0.0)})
    assert _decide(facts).tags["a"].reason == "pinned"
    by_digest = RepositoryFacts([tag], {tag.digest: ManifestFact(tag.digest, 0.0, stays="pinned by digest")})
    verdicts = _decide(by_digest)
    assert (verdicts.tags["a"].reason, verdicts.manifests[tag.digest].goes) == ("pinned by digest", False)


def test_what_was_undeleted_stays_for_a_while() -> None:
    """Otherwise the next round would delete it again."""
    [tag] = _days({"a": 100}).tags
    for days, going in ((6, ""), (8, "a")):
        restored = TagFact("a", tag.digest, 0.0, _NOW - days * _DAY)
        assert _going(RepositoryFacts([restored], {tag.digest: ManifestFact(tag.digest, 0.0)})) == going
        manifest = ManifestFact(tag.digest, 0.0, restored_at=_NOW - days * _DAY)
        assert _going(RepositoryFacts([tag], {tag.digest: manifest})) == going


def test_101_if_anything_cannot_be_read_all_stays() -> None:
    """It may name anything."""
    verdicts = _decide(_days({"a": 1}, unread="the tag b"), untagged_after=0.0)
    assert not verdicts.tags_going
    assert not verdicts.manifests_going
    assert verdicts.tags["a"].reason == "the tag b cannot be read, and may name it"


def test_a_tag_of_the_future_stays_and_takes_no_place() -> None:
    """A wrong clock has dated it: nobody can say whether it is among the newest."""
    facts = _days({"a": 1, "b": 2, "z": -400})
    assert _going(facts, KeepRule(newest=1)) == "b"
    assert _going(facts, KeepRule(within={Happening.PUSHED: _DAY / 2})) == "a b"
    assert _decide(facts, KeepRule(newest=1)).tags["z"].reason.endswith("(not certain, so it stays)")


def test_ages_are_judged_by_the_earlier_clock() -> None:
    """A clock that jumped ahead makes nothing older."""
    jumped = RetentionTimes(ClockReading(_NOW, _NOW + 400 * _DAY), 7 * _DAY, _DAY)
    rule = KeepRule(within={Happening.PUSHED: 30 * _DAY})
    assert _decide(_BUILDS, rule, times=jumped).tags_going == ["d"]


# --------------------------------------------------------------------------------------------------------- manifests


def _manifest(name: str, *children: str, subject: str = "", age: float = 100.0) -> ManifestFact:
    named = tuple(map(_digest, children))
    return ManifestFact(_digest(name), _NOW - age * _DAY, named, _digest(subject) if subject else None)


def _facts(tags: Mapping[str, str], *manifests: ManifestFact, **more: object) -> RepositoryFacts:
    """Tags, by the names of the manifests to which they point."""
    pointing = [TagFact(tag, _digest(name), _NOW - 100 * _DAY) for tag, name in tags.items()]
    return RepositoryFacts(pointing, {each.digest: each for each in manifests}, **more)  # type: ignore[arg-type]


def _names(verdicts: RetentionVerdicts, *names: str) -> str:
    going = verdicts.manifests_going
    return " ".join(name for name in names if _digest(name) in going)


def test_a_manifest_goes_when_no_tag_keeps_it() -> None:
    """Of two tags of one image, the deletion of one takes the tag alone."""
    facts = _facts({"v1": "m", "ci-1": "m", "ci-2": "n"}, _manifest("m"), _manifest("n"))
    verdicts = _decide(facts, delete=[DeleteRule(TagChoice(("ci-*",)))])
    assert verdicts.tags_going == ["ci-1", "ci-2"]
    assert _names(verdicts, "m", "n") == "n"
    assert verdicts.manifests[_digest("m")].reason == "tag v1"


def test_children_of_what_stays_stay() -> None:
    """A platform that two indexes share goes with the last of them; its own tag does not decide."""
    manifests = [_manifest("x", "p", "q"), _manifest("y", "q"), _manifest("p"), _manifest("q")]
    facts = _facts({"v1": "x", "v2": "y", "ci": "q"}, *manifests)
    verdicts = _decide(facts, KeepRule(TagChoice(("v2",))))
    assert verdicts.tags_going == ["ci", "v1"]
    assert _names(verdicts, "x", "y", "p", "q") == "x p"
    assert _names(_decide(facts), "x", "y", "p", "q") == "x y p q"


def test_a_child_that_was_pushed_again_waits_for_its_index() -> None:
    """An index is pushed after its children: for a day, they must not go under it."""
    for age, going in ((0.5, "x"), (2.0, "x p")):
        facts = _facts({"v1": "x"}, _manifest("x", "p"), _manifest("p", age=age))
        assert _names(_decide(facts), "x", "p") == going


def test_referrers_of_what_stays_stay() -> None:
    """Transitively, and although nothing points to them; those of what goes are left to collection."""
    manifests = [_manifest("m"), _manifest("sbom", subject="m"), _manifest("signature", subject="sbom")]
    facts = _facts({"v1": "m", "s": "sbom"}, *manifests)
    verdicts = _decide(facts, KeepRule(TagChoice(("v1",))), untagged_after=0.0)
    assert verdicts.tags_going == ["s"]
    assert not verdicts.manifests_going
    verdicts = _decide(facts, untagged_after=0.0)
    assert _names(verdicts, "m", "sbom", "signature") == "m sbom"
    assert "collection decides" in verdicts.manifests[_digest("signature")].reason


def test_attached_tags_share_the_fate_of_their_image() -> None:
    """They take no place among the newest either."""
    image, other = _digest("m"), _digest("n")
    tags = {
        "v1": "m",
        signature_tag(image): "sig",
        referrers_tag(image): "list",
        "v2": "n",
        signature_tag(other): "sig2",
    }
    manifests = [
        _manifest("m", age=2),
        _manifest("n", age=3),
        _manifest("sig", age=0.1),
        _manifest("list", "sbom", age=0.1),
        _manifest("sbom", subject="m"),
        _manifest("sig2", age=0.1),
    ]
    facts = _facts(tags, *manifests)
    verdicts = _decide(facts, KeepRule(newest=1))
    assert verdicts.tags_going == sorted(["v2", signature_tag(other)])
    assert _names(verdicts, "m", "n", "sig", "list", "sbom", "sig2") == "n sig2"
    assert verdicts.tags[signature_tag(image)].reason == f"attached to {image}"


def test_a_signature_without_its_image_stays() -> None:
    """The image may come later."""
    facts = _facts({signature_tag(_digest("m")): "sig"}, _manifest("sig"))
    assert not _decide(facts).tags_going


@pytest.mark.parametrize(("collect", "going"), [(False, "m list"), (True, "m list sbom")])
def test_what_a_list_of_referrers_names(collect: bool, going: str) -> None:
    """Goes with the list only if the registry collects dangling referrers."""
    tags = {"v1": "m", referrers_tag(_digest("m")): "list"}
    facts = _facts(tags, _manifest("m"), _manifest("list", "sbom"), _manifest("sbom", subject="m"))
    times = RetentionTimes(_TIMES.now, _TIMES.keep_deleted, _TIMES.grace, collect_dangling=collect)
    assert _names(_decide(facts, times=times), "m", "list", "sbom") == going


@pytest.mark.parametrize(
    ("marked", "pushed", "going"),
    [(8, 100, "m"), (8, 6, ""), (6, 100, ""), (None, 100, ""), (-1, 100, "")],
)
def test_untagged_manifests_wait(marked: float | None, pushed: float, going: str) -> None:
    """Since a round first saw them without a tag: when they were pushed says nothing about that."""
    since = {} if marked is None else {_digest("m"): _NOW - marked * _DAY}
    facts = _facts({}, _manifest("m", age=pushed), untagged_since=since)
    assert untagged(facts) == {_digest("m")}
    assert _names(_decide(facts, untagged_after=7 * _DAY), "m") == going
    assert not _decide(facts).manifests_going


def test_an_untagged_index_goes_with_its_platforms() -> None:
    """Its platforms are not untagged as long as it names them."""
    facts = _facts({}, _manifest("x", "p"), _manifest("p"), untagged_since={_digest("x"): 0.0})
    assert untagged(facts) == {_digest("x")}
    assert _names(_decide(facts, untagged_after=7 * _DAY), "x", "p") == "x p"


def test_112_what_an_interrupted_round_left_goes() -> None:
    """Its tags are gone already, so no rule names it; unless it was pushed since, or a tag keeps it."""
    facts = _facts({"v1": "m"}, _manifest("m"), _manifest("n"), _manifest("o", age=1))
    condemned = {_digest(name): _NOW - 2 * _DAY for name in "mno"}
    facts = RepositoryFacts(facts.tags, facts.manifests, condemned=condemned)
    assert _names(_decide(facts, delete=[]), "m", "n", "o") == "n"


def test_112_a_signature_that_an_interrupted_round_left_goes() -> None:
    """Although its image is gone already."""
    facts = _facts({signature_tag(_digest("m")): "sig"}, _manifest("sig"))
    facts = RepositoryFacts(facts.tags, facts.manifests, condemned={_digest("sig"): _NOW - _DAY})
    verdicts = _decide(facts, delete=[])
    assert len(verdicts.tags_going) == len(verdicts.manifests_going) == 1


def test_a_chain_of_indexes_is_no_trouble() -> None:
    """However deep."""
    chain = [_manifest(str(number), str(number + 1)) for number in range(5000)]
    facts = _facts({"v1": "0"}, *chain, _manifest("5000"))
    facts = RepositoryFacts(facts.tags, facts.manifests, PullFacts(0.0, {str(_digest("5000")): _NOW}))
    assert not _decide(facts, _PULLED).tags_going
    assert len(_decide(facts).manifests_going) == 5001


# ------------------------------------------------------------------------------------------------------------- rules


@given(st.lists(st.text("ab.*?", min_size=1, max_size=6), min_size=1, max_size=3), st.text("ab.", max_size=6))
def test_patterns_of_tags(patterns: list[str], tag: str) -> None:
    """`*` stands for anything, `?` for one character, all else for itself."""
    assert TagChoice(tuple(patterns)).has(tag) == any(fnmatchcase(tag, pattern) for pattern in patterns)


def test_rules_that_say_nothing_are_refused() -> None:
    """With a reason."""
    with pytest.raises(ValueError, match="needs a condition"):
        KeepRule()
    with pytest.raises(ValueError, match="exclude each other"):
        TagChoice(("a",), "b")
    with pytest.raises(ValueError, match="empty pattern"):
        TagChoice(("",))
    with pytest.raises(ValueError, match="not a regular expression"):
        TagChoice(regex="(")


def test_who_asks_for_pulls() -> None:
    """Pulls are recorded for no other repository."""
    pulled = RetentionPolicy(("a/**",), (_PULLED,))
    newest = RetentionPolicy(("b/**",), (KeepRule(newest=1, by=Happening.PULLED),))
    deleted = RetentionPolicy(("c/**",), (), (DeleteRule(TagChoice(("*",)), {Happening.PULLED: 1.0}),))
    other = RetentionPolicy(("d/**",), (KeepRule(newest=1),), (_ALL,))
    rules = RetentionRules({"corp": RegistryRetention((pulled, newest, deleted, other))})
    assert [rules.asks_for_pulls(Repo("corp", f"{name}/app")) for name in "abcde"] == [True, True, True, False, False]
    assert rules.registries_with_policies == ["corp"]
