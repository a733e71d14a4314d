"""Who may do what: rules, identities and what callers present."""

from __future__ import annotations

import base64
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.errors import Unauthorized
from mirror.oci.authorization import CallerCredentials, read_authorization
from mirror.oci.reference import Repo
from mirror.policy.access_rules import (
    ANONYMOUS,
    Action,
    AuthMethod,
    Identity,
    Policy,
    Rule,
    actions,
    check_caller,
)
from mirror.policy.routing import can_match_below, compile_pattern

_ALICE = Identity("alice", AuthMethod.PASSWORD, frozenset({"ops"}))
_BOB = Identity("bob", AuthMethod.PASSWORD)
_POD = Identity("system:serviceaccount:shop:web", AuthMethod.ISSUER)
_CI = Identity("ci", AuthMethod.TOKEN)
_NODE = Identity("system:node:n1", AuthMethod.CERTIFICATE, frozenset({"system:nodes"}))
_APP = Repo("ghcr.io", "acme/app")
_ALPINE = Repo("docker.io", "library/alpine")


def _rule(effect: str, who: Iterable[str], *match: str, actions: Iterable[Action] = (Action.PULL,)) -> Rule:
    return Rule(effect == "allow", tuple(who), frozenset(actions), match)


@pytest.mark.parametrize(
    ("who", "identities"),
    [
        ("*", [ANONYMOUS, _ALICE, _BOB, _POD, _CI, _NODE]),
        ("anonymous", [ANONYMOUS]),
        ("authenticated", [_ALICE, _BOB, _POD, _CI, _NODE]),
        ("user:alice", [_ALICE]),
        ("user:*", [_ALICE, _BOB]),
        ("user:ali", []),
        ("group:ops", [_ALICE]),
        ("group:system:*", [_NODE]),
        ("token:ci", [_CI]),
        ("subject:system:serviceaccount:shop:*", [_POD]),
        ("certificate:system:node:*", [_NODE]),
    ],
)
def test_whom_a_rule_is_about(who: str, identities: list[Identity]) -> None:
    """By kind and name; an account is no token of the same name."""
    rule = _rule("allow", [who])
    everyone = [ANONYMOUS, _ALICE, _BOB, _POD, _CI, _NODE]
    assert [one for one in everyone if rule.fits(one, Action.PULL, _APP)] == identities


@pytest.mark.parametrize("text", ["", "alice", "user:", "user: ", "admin:x", "group:", "*:x", "users:x"])
def test_entries_without_a_caller(text: str) -> None:
    """A mistake in a rule must not make it fit nobody, or everybody."""
    with pytest.raises(ValueError, match="is none of"):
        check_caller(text)


def test_without_rules() -> None:
    """Whoever is let in may pull, nobody may push or administer."""
    for anonymous in (True, False):
        policy = Policy(anonymous=anonymous)
        assert policy.allows(ANONYMOUS, Action.PULL, _APP) is anonymous
        assert policy.allows(_BOB, Action.PULL, _APP)
        for action in (Action.PUSH, Action.ADMIN):
            assert not policy.allows(_ALICE, action, _APP)
            assert not policy.allows(_ALICE, action, None)


def test_denying_goes_first() -> None:
    """Whatever order the rules stand in."""
    allow, deny = _rule("allow", ["*"], "ghcr.io/**"), _rule("deny", ["user:bob"], "ghcr.io/acme/*")
    for rules in ((allow, deny), (deny, allow)):
        policy = Policy(rules)
        assert policy.allows(_ALICE, Action.PULL, _APP)
        assert not policy.allows(_BOB, Action.PULL, _APP)
        assert policy.allows(_BOB, Action.PULL, Repo("ghcr.io", "other/app"))


def test_rules_that_only_deny() -> None:
    """They take away from what everybody has."""
    policy = Policy((_rule("deny", ["anonymous"], "ghcr.io/**"),))
    assert not policy.allows(ANONYMOUS, Action.PULL, _APP)
    assert policy.allows(ANONYMOUS, Action.PULL, _ALPINE)
    assert policy.allows(_BOB, Action.PULL, _APP)


def test_rules_of_other_actions_do_not_count() -> None:
    """A rule about administration says nothing about pulls."""
    policy = Policy((_rule("allow", ["group:ops"], actions=[Action.ADMIN]),))
    assert policy.allows(_BOB, Action.PULL, _APP)
    assert policy.allows(_ALICE, Action.ADMIN, None)
    assert not policy.allows(_BOB, Action.ADMIN, None)


@pytest.mark.parametrize(
    ("pattern", "open_registries"),
    [
        ("ghcr.io/**", {"docker.io", "quay.io"}),
        ("ghcr.io/acme/app", {"docker.io", "quay.io"}),
        ("corp/**", {"docker.io", "ghcr.io", "quay.io"}),
        ("*/team/**", set()),
        ("**", set()),
        ("**/app", set()),
        ("*.io/x", set()),
        ("g*/x", {"docker.io", "quay.io"}),
        ("g**", {"docker.io", "quay.io"}),
        ("?uay.io/x", {"docker.io", "ghcr.io"}),
        ("ghcr.io", {"docker.io", "ghcr.io", "quay.io"}),
        ("ghcr.io/", {"docker.io", "ghcr.io", "quay.io"}),
    ],
)
def test_a_rule_changes_nothing_for_registries_that_it_cannot_match(pattern: str, open_registries: set[str]) -> None:
    """Everybody may pull from a cached registry unless a rule that can match its names says who may; from a hosted
    registry, nobody may before a rule allows it.
    """
    policy = Policy((_rule("allow", ["user:nobody"], pattern),), hosted=frozenset({"corp"}))
    cached = {"docker.io", "ghcr.io", "quay.io"}
    found = {name for name in cached if policy.allows(_BOB, Action.PULL, Repo(name, "some/name"))}
    assert found == open_registries
    assert not policy.allows(_BOB, Action.PULL, Repo("corp", "some/name"))
    assert all(policy.may_anybody(Action.PULL, name) for name in cached)


@given(
    pattern=st.lists(st.sampled_from(["a", "b", "/", "*", "**", "?", "."]), max_size=7).map("".join),
    registry=st.sampled_from(["a", "b", "a.b", "ab", "b.a"]),
    name=st.lists(st.sampled_from(["a", "b", "/", "."]), min_size=1, max_size=5).map("".join),
)
def test_can_cover_is_never_less_than_what_matches(pattern: str, registry: str, name: str) -> None:
    """Whatever a pattern matches lies in a registry that it can cover, and the index of the rules finds the rule."""
    rule = _rule("allow", ["*"], pattern)
    if compile_pattern(pattern).fullmatch(f"{registry}/{name}"):
        assert can_match_below(pattern, f"{registry}/")
        assert rule.can_cover(registry)
        assert Policy((rule,), hosted=frozenset({registry})).allows(_BOB, Action.PULL, Repo(registry, name))
    elif rule.can_cover(registry):
        assert not Policy((rule,)).allows(_BOB, Action.PULL, Repo(registry, name))
    else:
        assert Policy((rule,)).allows(_BOB, Action.PULL, Repo(registry, name))


def test_a_hosted_registry_is_closed_until_rules_allow() -> None:
    """Each action by itself: a right to push is none to pull, to move tags or to delete."""
    corp = Repo("corp", "team/app")
    policy = Policy(
        (_rule("allow", ["user:alice"], "corp/team/**", actions=[Action.PUSH]),), hosted=frozenset({"corp"})
    )
    assert {action for action in Action if policy.allows(_ALICE, action, corp)} == {Action.PUSH}
    assert not any(policy.allows(_BOB, action, corp) for action in Action)
    assert not policy.allows(_ALICE, Action.PUSH, Repo("corp", "other/app"))
    assert policy.allows(_BOB, Action.PULL, _ALPINE)
    assert {action for action in Action if policy.may_anybody(action, "corp")} == {Action.PUSH}
    assert not any(Policy(hosted=frozenset({"corp"})).may_anybody(action, "corp") for action in Action)


def test_a_star_does_not_admit_anonymous_callers() -> None:
    """A rule for anonymous callers lets nobody in if `anonymous` is false."""
    rule = _rule("allow", ["anonymous"], "corp/**")
    for anonymous in (True, False):
        policy = Policy((rule,), anonymous=anonymous, hosted=frozenset({"corp"}))
        assert policy.may_anybody(Action.PULL, "corp") is anonymous


def test_write_is_push_and_overwrite() -> None:
    """A name for both; the others are what they are called."""
    assert actions(["write"]) == {Action.PUSH, Action.OVERWRITE}
    assert actions(["push", "delete"]) == {Action.PUSH, Action.DELETE}
    with pytest.raises(ValueError, match="create"):
        actions(["create"])


def test_ten_thousand_rules_are_found_by_their_repositories() -> None:
    """A verdict looks at the rules that can match the name, not at all of them."""
    rules = [_rule("allow", [f"user:u{n}"], f"corp/team{n}/**", actions=[Action.PUSH]) for n in range(10_000)]
    policy = Policy(tuple(rules), hosted=frozenset({"corp"}))
    repo = Repo("corp", "team77/app")
    assert list(policy.candidates(Action.PUSH, repo)) == [rules[77]]
    assert policy.allows(Identity("u77", AuthMethod.PASSWORD), Action.PUSH, repo)
    assert not policy.allows(Identity("u78", AuthMethod.PASSWORD), Action.PUSH, repo)


def test_a_rule_of_repositories_is_not_about_the_whole_mirror() -> None:
    """Who administers some repositories does not administer all."""
    policy = Policy((_rule("allow", ["group:ops"], "ghcr.io/**", actions=[Action.ADMIN]),))
    assert policy.allows(_ALICE, Action.ADMIN, _APP)
    assert not policy.allows(_ALICE, Action.ADMIN, None)


def test_anonymous_is_shut_out_whatever_rules_say() -> None:
    """`anonymous = false` is the last word."""
    assert not Policy((_rule("allow", ["*"]),), anonymous=False).allows(ANONYMOUS, Action.PULL, _APP)


def _basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("lines", "presented"),
    [
        ([], None),
        ([""], None),
        ([_basic(":")], None),
        ([_basic("alice:s3:cret")], CallerCredentials("alice", "s3:cret")),
        ([_basic("alice:").replace("Basic", "bAsIc ")], CallerCredentials("alice")),
        ([_basic("é:ü")], CallerCredentials("é", "ü")),
        (["Bearer abc.def"], CallerCredentials(bearer="abc.def")),
        (["bearer   abc"], CallerCredentials(bearer="abc")),
    ],
)
def test_what_is_presented(lines: list[str], presented: CallerCredentials | None) -> None:
    """Basic and Bearer, in any case; empty credentials are none."""
    assert read_authorization(lines) == presented


@pytest.mark.parametrize(
    "lines",
    [
        ["Basic"],
        ["Basic !!!"],
        ["Basic " + base64.b64encode(b"nocolon").decode()],
        ["Basic " + base64.b64encode(b"\xff:\xff").decode()],
        ["Bearer"],
        ["Bearer a b"],
        ["Bearer \xe9"],
        ["Digest x"],
        ["Bearer a", "Bearer b"],
        ["Bearer " + "a" * 40_000],
    ],
)
def test_what_cannot_be_read(lines: list[str]) -> None:
    """It is refused, and no message quotes it."""
    with pytest.raises(Unauthorized) as caught:
        read_authorization(lines)
    assert "nocolon" not in str(caught.value)


def test_secrets_are_not_shown() -> None:
    """In no text form."""
    assert "hunter2" not in repr(CallerCredentials("alice", "hunter2", "hunter2"))
