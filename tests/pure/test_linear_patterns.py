"""Regular expressions without surprises: the same answers as Python's, and an end."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.values.linear_patterns import LONGEST, LinearPattern

_ATOMS = st.sampled_from(["a", "b", "1", ".", r"\d", r"\w", "[ab]", "[^a]", "[0-9-]", r"\.", "-"])
_EXPRESSIONS = st.recursive(
    _ATOMS,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda pair: f"(?:{pair[0]}|{pair[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "*?", "{2,}"])).map(
            lambda pair: f"({pair[0]}){pair[1]}"
        ),
    ),
    max_leaves=5,
)


@given(_EXPRESSIONS, st.text("ab1.-", max_size=8))
def test_it_matches_what_python_matches(expression: str, text: str) -> None:
    """For every expression that is accepted."""
    try:
        pattern = LinearPattern(expression)
    except ValueError:
        return
    assert pattern.matches(text) == (re.fullmatch(expression, text) is not None)


@pytest.mark.parametrize(
    ("expression", "text", "matches"),
    [
        (r"v\d+\.\d+\.\d+(-rc\d+)?", "v1.20.3-rc1", True),
        (r"v\d+\.\d+\.\d+(-rc\d+)?", "v1.20.3-beta", False),
        (r"^main-[0-9a-f]{7,40}$", "main-0123abc", True),
        (r"[a-z]+(-[a-z]+)*", "some-name-x", True),
        (r"(?P<year>20\d\d)-.*", "2025-01-31", True),
        ("", "", True),
        (r"\Aa|b\Z", "b", True),
    ],
)
def test_expressions_that_people_write(expression: str, text: str, matches: bool) -> None:
    """Named groups, anchors and lazy repetitions are fine."""
    assert LinearPattern(expression).matches(text) is matches


@pytest.mark.parametrize("expression", ["(a|a)*b", "(a*)*b", "(a|aa)+b", ".*a.*a.*a.*a.*a.*b", "((a?){256}){256}b"])
def test_no_text_takes_long(expression: str) -> None:
    """Python's own engine would not come back from these."""
    assert not LinearPattern(expression).matches("a" * 128)


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("(", "not a regular expression"),
        ("a" * (LONGEST + 1), "more than 200 characters"),
        (r"(a)\1", "back-references"),
        ("a(?=b)", "looking ahead"),
        ("(?<!a)b", "looking behind"),
        ("(?i)a", "flags"),
        ("(?i:a)", "flags"),
        (r"a\b", "are not supported"),
        ("a{1000}", "more than 256 times"),
        ("((((a*)*)*)*)", "repetitions within repetitions"),
    ],
)
def test_what_is_refused(expression: str, why: str) -> None:
    """With a reason."""
    with pytest.raises(ValueError, match=why):
        LinearPattern(expression)
