"""What a registry's limit of pulls leads to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.policy.freshness import FreshnessRule
from mirror.policy.upstream.budget import Budget, is_spent, newer, parse_budget, patience, resets_in

NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("limit", "remaining", "budget"),
    [
        ("100;w=21600", "76;w=21600", Budget(100, 76, 21600, NOW)),
        (" 200 ; w=21600 ", "0;w=21600", Budget(200, 0, 21600, NOW)),
        ("100;w=21600", "500;w=21600", Budget(100, 100, 21600, NOW)),
        ("2000", "1999", None),
        ("100;w=21600", None, None),
        (None, "76;w=21600", None),
        ("0;w=21600", "0;w=21600", None),
        ("100;w=0", "1;w=0", None),
        ("-1;w=21600", "76;w=21600", None),
        ("100;w=21600;x", "76;w=21600", None),
        ("99999999999999999999;w=1", "1;w=1", None),
        ("", "", None),
    ],
)
def test_what_the_headers_say(limit: str | None, remaining: str | None, budget: Budget | None) -> None:
    """Both fields, with a window; whatever else they hold is no budget."""
    assert parse_budget(limit, remaining, NOW) == budget


def test_nothing_left() -> None:
    """Until the window is over, and not a second longer."""
    spent = Budget(100, 0, 21600, NOW)
    assert is_spent(spent, NOW)
    assert is_spent(spent, NOW + 21599)
    assert not is_spent(spent, NOW + 21600)
    assert not is_spent(Budget(100, 1, 21600, NOW), NOW)
    assert not is_spent(None, NOW)
    assert (resets_in(spent, NOW), resets_in(spent, NOW + 600), resets_in(spent, NOW + 90000)) == (21600, 21000, 0)
    assert resets_in(spent, NOW - 500) == 21600


@pytest.mark.parametrize(
    ("remaining", "factor"), [(100, 1), (51, 1), (50, 1), (25, 2), (10, 5), (5, 10), (1, 10), (0, 10)]
)
def test_patience(remaining: int, factor: float) -> None:
    """Tags are believed longer as the budget falls below half."""
    assert patience(Budget(100, remaining, 21600, NOW), NOW) == pytest.approx(factor)
    assert patience(Budget(100, remaining, 21600, NOW), NOW + 21600) == 1
    assert patience(None, NOW) == 1
    assert FreshnessRule(300, 7).stretched(factor) == FreshnessRule(300 * factor, 7)


@given(limit=st.integers(1, 10**6), part=st.floats(0, 1), lower=st.floats(0, 1))
def test_less_left_never_means_less_patience(limit: int, part: float, lower: float) -> None:
    """And it stays within 1 and 10."""
    more = Budget(limit, round(limit * part), 60, NOW)
    less = Budget(limit, round(limit * part * lower), 60, NOW)
    assert 1 <= patience(more, NOW) <= patience(less, NOW) <= 10 + 1e-9


def test_what_is_shared() -> None:
    """Written down and read back; nonsense is nothing; the later one counts."""
    one, other = Budget(100, 5, 21600, NOW), Budget(100, 4, 21600, NOW + 1)
    assert Budget.from_json(one.to_json()) == one
    assert [Budget.from_json(text) for text in (None, [], "abcd", [1, 2, 3], {"a": 1})] == [None] * 5
    assert newer(one, other) == newer(other, one) == other
    assert newer(None, one) == newer(one, None) == one
    assert newer(None, None) is None
