"""When a failing service is left alone."""

from __future__ import annotations

from mirror.aio.breaker import Breaker
from tests.support.clock import Clock


def test_a_failure_opens_it_for_the_pause() -> None:
    """Nobody is let through until the pause is over, then exactly one."""
    clock = Clock(0.0)
    breaker = Breaker(clock, first=1.0)
    ticket = breaker.admit()
    assert ticket is not None
    assert breaker.fail(ticket)
    assert breaker.is_open
    clock.time = 0.99
    assert breaker.admit() is None
    clock.time = 1.0
    assert breaker.admit() is not None
    assert breaker.admit() is None


def test_failures_that_come_together_count_once() -> None:
    """Ten calls that fail together open it once, and do not lengthen the pause."""
    clock = Clock(0.0)
    breaker = Breaker(clock, first=1.0)
    tickets = [breaker.admit() for _ in range(10)]
    assert [breaker.fail(ticket) for ticket in tickets if ticket is not None] == [True] + [False] * 9
    clock.time = 1.0
    assert breaker.admit() is not None


def test_the_pause_doubles_up_to_the_longest() -> None:
    """1, 2, 4, 5, 5 where 5 is the longest; a success begins at 1 again."""
    clock = Clock(0.0)
    breaker = Breaker(clock, first=1.0, longest=5.0)
    ticket = breaker.admit()
    assert ticket is not None
    breaker.fail(ticket)
    for pause in (1.0, 2.0, 4.0, 5.0, 5.0):
        clock.time += pause - 0.01
        assert breaker.admit() is None
        clock.time += 0.01
        ticket = breaker.admit()
        assert ticket is not None
        assert not breaker.fail(ticket)
    clock.time += 5.0
    ticket = breaker.admit()
    assert ticket is not None
    assert breaker.succeed(ticket)
    ticket = breaker.admit()
    assert ticket is not None
    assert breaker.fail(ticket)
    clock.time += 1.0
    assert breaker.admit() is not None


def test_an_old_call_decides_nothing() -> None:
    """A call that began before the outage and succeeds late does not end it; only the probe does."""
    breaker = Breaker(Clock(0.0))
    old, failing = breaker.admit(), breaker.admit()
    assert old is not None
    assert failing is not None
    breaker.fail(failing)
    assert not breaker.succeed(old)
    assert breaker.admit() is None


def test_a_probe_that_is_given_up_makes_room_for_another() -> None:
    """A caller who leaves during the probe does not keep everyone away for ever."""
    clock = Clock(0.0)
    breaker = Breaker(clock, first=1.0)
    ticket = breaker.admit()
    assert ticket is not None
    breaker.fail(ticket)
    clock.time = 1.0
    probe = breaker.admit()
    assert probe is not None
    assert breaker.admit() is None
    breaker.withdraw(probe)
    assert breaker.admit() is not None


def test_a_success_while_closed_changes_nothing() -> None:
    """The ordinary case."""
    breaker = Breaker(Clock(0.0))
    for _ in range(3):
        ticket = breaker.admit()
        assert ticket is not None
        assert not breaker.succeed(ticket)
    assert not breaker.is_open
