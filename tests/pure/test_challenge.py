"""What registries send as `WWW-Authenticate`, and scopes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.oci.challenge import Challenge, Scope, parse_challenges

HUB = 'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/redis:pull"'


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (
            [HUB],
            [
                Challenge(
                    "bearer",
                    {
                        "realm": "https://auth.docker.io/token",
                        "service": "registry.docker.io",
                        "scope": "repository:library/redis:pull",
                    },
                )
            ],
        ),
        (['BASIC Realm="Registry"'], [Challenge("basic", {"realm": "Registry"})]),
        (['bearer REALM = "a" , Service="b"'], [Challenge("bearer", {"realm": "a", "service": "b"})]),
        (
            ['Basic realm="x", Bearer realm="y",scope="a:b:pull,push", Negotiate'],
            [
                Challenge("basic", {"realm": "x"}),
                Challenge("bearer", {"realm": "y", "scope": "a:b:pull,push"}),
                Challenge("negotiate"),
            ],
        ),
        (
            ['Basic realm="x"', 'Bearer realm="y"'],
            [Challenge("basic", {"realm": "x"}), Challenge("bearer", {"realm": "y"})],
        ),
        (['Negotiate abc==, Basic realm="x"'], [Challenge("negotiate"), Challenge("basic", {"realm": "x"})]),
        (['Basic realm="a \\"quoted\\" \\\\ name"'], [Challenge("basic", {"realm": 'a "quoted" \\ name'})]),
        (
            ["Bearer realm=https://a.example/t,service=s"],
            [Challenge("bearer", {"realm": "https://a.example/t", "service": "s"})],
        ),
        (['Bearer realm="a",realm="b"'], [Challenge("bearer", {"realm": "a"})]),
        (['Bearer realm="a",error="invalid_token",'], [Challenge("bearer", {"realm": "a", "error": "invalid_token"})]),
        (['Bearer realm="a",service="cut'], [Challenge("bearer", {"realm": "a"})]),
        (["", " , ,", '="x"', "realm=x"], []),
        ([], []),
    ],
)
def test_challenges_are_read(lines: list[str], expected: list[Challenge]) -> None:
    """Schemes and names in any case, quoted strings with escapes, several challenges in one or several lines."""
    assert parse_challenges(lines) == expected


@given(st.lists(st.text(max_size=200), max_size=4))
def test_any_header_is_read_without_an_error(lines: list[str]) -> None:
    """What upstream sends never raises, and what is read has lower-case names."""
    for challenge in parse_challenges(lines):
        assert challenge.scheme == challenge.scheme.lower()
        assert all(name == name.lower() for name in challenge.parameters)


@given(st.text(st.characters(codec="latin-1", exclude_categories=["Cc"]), max_size=80))
def test_a_quoted_value_comes_back_as_it_was(value: str) -> None:
    """Quoting and reading are inverse."""
    quoted = value.replace("\\", "\\\\").replace('"', '\\"')
    assert parse_challenges([f'Bearer realm="{quoted}", service=x']) == [
        Challenge("bearer", {"realm": value, "service": "x"})
    ]


def test_a_scope_joins_actions_of_one_resource() -> None:
    """The union has each resource once, with all its actions; a registry's port is part of the resource."""
    asked = Scope.parse("repository:a/b:push,pull repository:host:5000/c:pull aws")
    joined = asked.union(Scope.pull("a/b")).union(Scope.pull("d"))
    assert str(joined) == "aws repository:a/b:pull,push repository:d:pull repository:host:5000/c:pull"


def test_a_union_has_one_form() -> None:
    """The order in which scopes come does not make another key."""
    one, other = Scope.pull("a"), Scope.parse("repository:a:push registry:catalog:*")
    assert one.union(other) == other.union(one)
    assert one.union(one) == one
    assert Scope.parse("") == Scope()
