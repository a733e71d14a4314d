"""When records of tags and manifests are forgotten."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.policy.freshness import FreshnessRule, forgotten_after, is_forgotten, is_fresh, may_serve_stale
from mirror.policy.upstream.budget import Budget, patience

_DAY = 86400.0
_RULE = FreshnessRule(tag_ttl=300.0, stale_while_down=7 * _DAY)
_SECONDS = st.floats(0, 1e9)


def test_the_setting_and_the_time_that_a_client_may_have_asked_later() -> None:
    """A record may be as much older than the last question as its answer was trusted."""
    assert forgotten_after(90 * _DAY, _RULE) == 90 * _DAY + 3000


@pytest.mark.parametrize(
    ("after", "minimum_age", "sealed"),
    [(0.0, 0.0, False), (_DAY, 3 * _DAY, False), (_DAY, 0.0, True)],
    ids=["turned off", "minimum age", "sealed"],
)
def test_some_are_never_forgotten(after: float, minimum_age: float, sealed: bool) -> None:
    """Whatever the other settings."""
    assert forgotten_after(after, _RULE, minimum_age=minimum_age, sealed=sealed) is None


@given(forget_after=st.floats(1, 1e9), ttl=_SECONDS, stale=_SECONDS, now=st.floats(2e9, 3e9), age=_SECONDS)
def test_no_answer_is_forgotten_that_might_still_be_given(
    forget_after: float, ttl: float, stale: float, now: float, age: float
) -> None:
    """Fresh, or stale while upstream is down, also while a spent budget stretches the trust in it."""
    rule, written_at = FreshnessRule(ttl, stale), now - age
    after = forgotten_after(forget_after, rule)
    assert after is not None
    if is_forgotten(written_at, after, now):
        assert not is_fresh(written_at, now, rule.stretched(patience(Budget(100, 0, 6 * 3600.0, now), now)))
        assert not may_serve_stale(written_at, now, rule)
        # and nobody has asked since: the last question may have been answered from it
        assert now - written_at >= forget_after


def test_from_the_end_of_that_time_on() -> None:
    """A record that was written in the future stays."""
    assert is_forgotten(0.0, _DAY, 2 * _DAY)
    assert is_forgotten(0.0, _DAY, _DAY)
    assert not is_forgotten(0.0, _DAY, _DAY - 1)
    assert not is_forgotten(3 * _DAY, _DAY, 2 * _DAY)
