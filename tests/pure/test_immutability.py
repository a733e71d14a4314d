"""Which tags are immutable."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.hosted.immutability import ImmutableRule, ImmutableTags

APP = Repo("corp", "team-a/app")
BASE = Repo("corp", "base")
ELSEWHERE = Repo("lab", "team-a/app")

SUBJECT = Digest.of(b"subject")
ATTACHMENTS = [
    f"sha256-{SUBJECT.hex}",
    f"sha512-{SUBJECT.hex}",
    *(f"sha256-{SUBJECT.hex}.{suffix}" for suffix in ("sig", "att", "sbom")),
]


def _tags(*rules: ImmutableRule) -> ImmutableTags:
    return ImmutableTags({"corp": rules})


def test_a_rule_covers_the_tags_of_its_patterns() -> None:
    """In the repositories of its patterns, in its registry, and except its exceptions."""
    rules = _tags(ImmutableRule(("team-*/**",), ("v*", "20??"), ("v0.*",)))
    assert all(rules.rule(APP, tag) for tag in ("v1", "v1.0-rc.1", "2026"))
    assert not any(rules.rule(APP, tag) for tag in ("v0.1", "20260", "latest", "V1"))
    assert rules.rule(BASE, "v1") is None
    assert rules.rule(ELSEWHERE, "v1") is None
    assert ImmutableTags().rule(APP, "v1") is None


def test_an_exception_does_not_weaken_another_rule() -> None:
    """A tag is immutable if one rule covers it."""
    rules = _tags(ImmutableRule(exceptions=("latest", "dev-*")), ImmutableRule(("base",), ("latest",)))
    assert rules.rule(APP, "latest") is None
    assert rules.rule(BASE, "latest") is not None
    assert rules.rule(BASE, "dev-1") is None
    assert str(rules.rule(APP, "1")) == "* in **, except latest, dev-*"
    assert str(rules.rule(BASE, "latest")) == "latest in base"


def test_tags_of_signatures_move_unless_they_are_named() -> None:
    """`*` is about images: a second signature moves the tag of the first."""
    everything = _tags(ImmutableRule())
    named = _tags(ImmutableRule(tags=("sha256-*", "sha512-*")))
    for tag in ATTACHMENTS:
        assert everything.rule(APP, tag) is None, tag
        assert named.rule(APP, tag) is not None, tag
    # as the tag of an image would be
    assert everything.rule(APP, "sha256-1234") is not None
    assert named.rule(APP, "sha256-1234") is not None


def test_which_repositories_a_rule_concerns() -> None:
    rules = _tags(ImmutableRule(("team-*/**",)))
    assert rules.concern(APP)
    assert not rules.concern(BASE)
    assert not rules.concern(ELSEWHERE)


_patterns = st.lists(st.text("ab*?.-", min_size=1, max_size=4), min_size=1, max_size=3).map(tuple)
_rules = st.builds(ImmutableRule, st.just(("**",)), _patterns, st.one_of(st.just(()), _patterns))


@given(st.lists(_rules, max_size=4), st.text("ab.-", min_size=1, max_size=5))
def test_one_rule_is_enough(rules: list[ImmutableRule], tag: str) -> None:
    """However the rules are ordered, and whatever the others say."""
    immutable = any(_tags(rule).rule(APP, tag) for rule in rules)
    assert (_tags(*rules).rule(APP, tag) is not None) == immutable
    assert (_tags(*reversed(rules)).rule(APP, tag) is not None) == immutable
