"""Regular expressions without surprises: what matches, what is refused, and an end."""

from __future__ import annotations

import pytest

from mirror.values.linear_patterns import LONGEST, LinearPattern


@pytest.mark.parametrize(
    ("expression", "text", "matches"),
    [
        (r"v\d+\.\d+\.\d+(-rc\d+)?", "v1.20.3-rc1", True),
        (r"v\d+\.\d+\.\d+(-rc\d+)?", "v1.20.3-beta", False),
        ("main-[0-9a-f]{7,40}", "main-0123abc", True),
        ("main", "main-1", False),
        ("[a-z]+(-[a-z]+)*", "some-name-x", True),
        ("a|b", "ab", False),
        ("", "", True),
    ],
)
def test_the_whole_text_matches(expression: str, text: str, matches: bool) -> None:
    """As with Python's `fullmatch`."""
    assert LinearPattern(expression).matches(text) is matches


@pytest.mark.parametrize("expression", ["(a|a)*b", "(a*)*b", ".*a.*a.*a.*a.*a.*b", "((a?){30}){30}b"])
def test_no_text_takes_long(expression: str) -> None:
    """Python's own engine would not come back from these."""
    assert not LinearPattern(expression).matches("a" * 128)


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("(", "not a regular expression: '\\(': missing"),
        ("a" * (LONGEST + 1), "more than 200 characters"),
        (r"(a)\1", "invalid escape"),
        ("a(?=b)", "invalid perl operator"),
        ("a{5000}", "invalid repetition"),
    ],
)
def test_what_is_refused(expression: str, why: str, capfd: pytest.CaptureFixture[str]) -> None:
    """With a reason, and nothing is printed."""
    with pytest.raises(ValueError, match=why):
        LinearPattern(expression)
    assert capfd.readouterr() == ("", "")
