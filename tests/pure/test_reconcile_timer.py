"""When index and disk are compared."""

from __future__ import annotations

from mirror.app.housekeeping import ReconcileTimer
from tests.support.clock import Clock

_DAY = 86400


def test_at_once_and_every_day() -> None:
    """At start, and a day after each that was done."""
    clock = Clock()
    comparisons = ReconcileTimer(clock)
    assert comparisons.due_in() <= 0
    comparisons.ended(clock.time, done=True)
    assert comparisons.due_in() == _DAY


def test_after_an_outage_at_once() -> None:
    """An index that was away may have missed something, which is looked for without waiting for the day's end."""
    clock = Clock()
    comparisons = ReconcileTimer(clock)
    comparisons.ended(clock.time, done=True)
    clock.time += 600
    comparisons.wanted()
    assert comparisons.due_in() <= 0


def test_an_index_that_comes_and_goes() -> None:
    """Comparing takes a twentieth of the time at the most, however often the index was away."""
    clock = Clock()
    comparisons = ReconcileTimer(clock)
    began = clock.time
    clock.time += 30
    comparisons.ended(began, done=True)
    comparisons.wanted()
    assert comparisons.due_in() == 600
    clock.time += 600
    comparisons.wanted()
    assert comparisons.due_in() <= 0


def test_one_that_failed_is_done_soon() -> None:
    """What the index did not take is not put off for a day."""
    clock = Clock()
    comparisons = ReconcileTimer(clock)
    comparisons.ended(clock.time, done=False)
    assert 0 < comparisons.due_in() <= 60
