"""A rate is kept whatever the pieces are, and nothing is saved up while nobody works."""

from __future__ import annotations

import pytest

from mirror.aio.token_bucket import TokenBucket


@pytest.mark.parametrize("piece", [1, 100, 1000, 5000])
def test_the_rate_is_not_exceeded(piece: int) -> None:
    """Over many pieces the time is that of their bytes at the rate."""
    pace, now = TokenBucket(1000.0), 50.0
    for _ in range(100):
        now += pace.take(piece, now)
    assert now - 50.0 == pytest.approx(piece * 100 / 1000.0)


def test_slow_work_waits_for_nothing() -> None:
    """Below the rate there is no wait, and after a long pause no more than a second's worth at once."""
    pace = TokenBucket(1000.0)
    assert pace.take(1, 0.0) == pytest.approx(0.001)
    assert pace.take(500, 1.0) == 0.0
    assert pace.take(1000, 1000.0) == 0.0
    assert pace.take(1000, 1000.0) == pytest.approx(1.0)


def test_without_a_rate() -> None:
    """No limit, no wait."""
    assert TokenBucket(None).take(10**12, 0.0) == 0.0
