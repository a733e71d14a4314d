"""How long a tag's answer is believed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.policy.freshness import FreshnessRule, is_fresh, may_serve_stale

_RULE = FreshnessRule(tag_ttl=100, stale_while_down=1000)
_T = 1_000_000.0


@pytest.mark.parametrize(
    ("age", "fresh", "stale"),
    [
        (0, True, True),
        (99.9, True, True),
        (100, False, True),
        (999.9, False, True),
        (1000, False, False),
        (-59, True, True),
        (-61, False, True),
        (-86400 * 365, False, True),
        (86400 * 365, False, False),
    ],
)
def test_ages(age: float, fresh: bool, stale: bool) -> None:
    """Fresh within the time to live; better than nothing within the longer time; row 43: the future is not fresh."""
    assert is_fresh(_T - age, _T, _RULE) is fresh
    assert may_serve_stale(_T - age, _T, _RULE) is stale


def test_nothing_is_believed() -> None:
    """With a time to live of 0 upstream is asked each time."""
    assert not is_fresh(_T, _T, FreshnessRule(0, 0))


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6), st.floats(0, 1e6))
def test_what_is_fresh_may_also_be_served_while_down(age: float, ttl: float, stale: float) -> None:
    """Upstream's failure never makes an answer worse: what would be given without asking is given after asking too."""
    rule = FreshnessRule(ttl, stale)
    assert may_serve_stale(_T - age, _T, rule) or not is_fresh(_T - age, _T, rule)
