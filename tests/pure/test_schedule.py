"""When something is due next."""

from __future__ import annotations

from datetime import datetime

import pytest

from mirror.policy.schedule import Cron, Every, Last, Plan, next_run, period_end

_H = 3600.0
_NOW = datetime.fromisoformat("2026-01-31T12:00:00+00:00").timestamp()
_EVERY = Every(6 * _H)
_DAILY = Cron("0 3 * * *")


def _at(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


@pytest.mark.parametrize(
    ("plan", "last", "due"),
    [
        # never ran: every so often begins at once, cron waits for its time
        (_EVERY, Last(_NOW), _NOW),
        (_DAILY, Last(_NOW), _at("2026-02-01T03:00:00+00:00")),
        # ran
        (_EVERY, Last(0, _NOW - _H, _NOW - _H + 5), _NOW + 5 * _H),
        (_DAILY, Last(0, _at("2026-01-31T03:00:04+00:00"), _NOW), _at("2026-02-01T03:00:00+00:00")),
        # missed while the mirror was off: once, now
        (_EVERY, Last(0, _NOW - 99 * _H, _NOW - 98 * _H), _NOW - 93 * _H),
        (_DAILY, Last(0, _NOW - 99 * _H, _NOW - 98 * _H), _at("2026-01-28T03:00:00+00:00")),
        # a run that takes longer than its period is followed by the next
        (Every(_H), Last(0, _NOW - 2 * _H, _NOW - 1), _NOW - _H),
        # failed: after five minutes, then ten, at most an hour; never later than regularly
        (_EVERY, Last(0, _NOW - 60, _NOW, 1), _NOW + 300),
        (_EVERY, Last(0, _NOW - 60, _NOW, 2), _NOW + 600),
        (_EVERY, Last(0, _NOW - 60, _NOW, 5), _NOW + 3600),
        (_EVERY, Last(0, _NOW - 60, _NOW, 1000), _NOW + 3600),
        (_DAILY, Last(0, _NOW - 60, _NOW, 1), _NOW + 300),
        (Every(120), Last(0, _NOW - 60, _NOW, 3), _NOW + 60),
        # interrupted: it begins anew
        (_EVERY, Last(0, _NOW - 60), _NOW - 60),
        (_DAILY, Last(0, _NOW - 60), _NOW - 60),
        # the clock was set back: what is said to have been in the future was not
        (_EVERY, Last(_NOW + 99 * _H), _NOW),
        (_EVERY, Last(0, _NOW + 99 * _H, _NOW + 100 * _H), _NOW),
        (_DAILY, Last(0, _NOW + 99 * _H, _NOW + 100 * _H), _NOW),
        (_EVERY, Last(0, _NOW - 60, _NOW + 99 * _H, 1), _NOW + 300),
        # but not for a few seconds
        (_EVERY, Last(0, _NOW + 5, _NOW + 6), _NOW + 5 + 6 * _H),
    ],
)
def test_when_it_is_due(plan: Plan, last: Last, due: float) -> None:
    """Without jitter."""
    assert next_run(plan, last, _NOW, 0.0) == due


@pytest.mark.parametrize(
    ("expression", "timezone", "after", "due"),
    [
        ("0 3 * * *", "UTC", "2026-01-31T12:00:00+00:00", "2026-02-01T03:00:00+00:00"),
        ("0 3 * * *", "Europe/Berlin", "2026-01-31T12:00:00+00:00", "2026-02-01T02:00:00+00:00"),
        ("0 3 * * *", "Europe/Berlin", "2026-07-31T12:00:00+00:00", "2026-08-01T01:00:00+00:00"),
        # 02:30 does not exist on this day: the next time that does
        ("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00+00:00", "2026-03-29T01:00:00+00:00"),
        ("30 2 * * *", "Europe/Berlin", "2026-03-29T01:00:00+00:00", "2026-03-30T00:30:00+00:00"),
        # and twice on this one: once, at its first
        ("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00+00:00", "2026-10-25T00:30:00+00:00"),
        ("30 2 * * *", "Europe/Berlin", "2026-10-25T00:30:00+00:00", "2026-10-26T01:30:00+00:00"),
        # hourly it is 25 times
        ("30 * * * *", "Europe/Berlin", "2026-10-25T00:30:00+00:00", "2026-10-25T01:30:00+00:00"),
        ("0 0 29 2 *", "UTC", "2026-01-01T00:00:00+00:00", "2028-02-29T00:00:00+00:00"),
        ("0 4 * * MON#1", "UTC", "2026-01-31T12:00:00+00:00", "2026-02-02T04:00:00+00:00"),
    ],
)
def test_cron(expression: str, timezone: str, after: str, due: str) -> None:
    """In the zone that is meant, also where clocks are changed."""
    plan = Cron(expression, timezone)
    assert plan.after(_at(after)) == _at(due)
    assert next_run(plan, Last(0, _at(after), _at(after)), _at(after), 0.0) == _at(due)


def test_a_run_is_never_due_again_for_the_same_time() -> None:
    """Through a whole year with both changes of the clocks, each run leads to a later one, about a day apart."""
    plan = Cron("30 2 * * *", "Europe/Berlin")
    moment, runs = _at("2026-01-01T01:30:00+00:00"), 0
    while moment < _at("2027-01-01T01:30:00+00:00"):
        due = next_run(plan, Last(0, moment, moment), moment, 0.0)
        assert 22 * _H < due - moment < 27 * _H
        moment, runs = due, runs + 1
    assert (moment, runs) == (_at("2027-01-01T01:30:00+00:00"), 365)


@pytest.mark.parametrize(
    ("plan", "last", "most"),
    [
        (_EVERY, Last(_NOW), 300.0),
        (Every(60), Last(_NOW), 6.0),
        (_DAILY, Last(0, _NOW, _NOW), 300.0),
        (Cron("* * * * *"), Last(0, _NOW, _NOW), 6.0),
        (_EVERY, Last(0, _NOW, _NOW, 1), 30.0),
        (_EVERY, Last(0, _NOW), 15.0),
        (_EVERY, Last(0, _NOW, _NOW), 0.0),
    ],
)
def test_jitter(plan: Plan, last: Last, most: float) -> None:
    """Spreads over a tenth of the period, at most five minutes; what began at its own time keeps it."""
    plain = next_run(plan, last, _NOW, 0.0)
    assert next_run(plan, last, _NOW, 1.0) == pytest.approx(plain + most)
    assert next_run(plan, last, _NOW, 0.5) == pytest.approx(plain + most / 2)


def test_how_long_done_is_done() -> None:
    """Up to the next time, without any jitter."""
    assert period_end(_EVERY, _NOW) == _NOW + 6 * _H
    assert period_end(_DAILY, _NOW) == _at("2026-02-01T03:00:00+00:00")


@pytest.mark.parametrize(
    ("expression", "timezone", "said"),
    [
        ("0 3 * *", "UTC", "not a cron expression"),
        ("", "UTC", "not a cron expression"),
        ("@daily", "UTC", "not a cron expression"),
        ("60 * * * *", "UTC", "not a cron expression"),
        ("0 0 * * MON#1/2", "UTC", "not a cron expression"),
        ("0 0 30 2 *", "UTC", "not a cron expression"),
        ("0 0 30 2 MON#1", "UTC", None),
        ("0 3 * * *", "Europe/Berln", "unknown time zone"),
        ("0 3 * * *", "../../etc/passwd", "unknown time zone"),
        ("0 3 * * *", "", "unknown time zone"),
    ],
)
def test_mistakes(expression: str, timezone: str, said: str | None) -> None:
    """Each is named."""
    if said is None:
        assert Cron(expression, timezone).after(_NOW)
        return
    with pytest.raises(ValueError, match=said):
        Cron(expression, timezone)


def test_plans_as_text() -> None:
    """As people would write them."""
    plans = [_EVERY, Every(90), Every(86400 * 2), _DAILY, Cron("0 3 * * *", "Europe/Berlin")]
    assert [*map(str, plans)] == [
        "every 6h",
        "every 90s",
        "every 2d",
        "cron 0 3 * * *",
        "cron 0 3 * * * (Europe/Berlin)",
    ]
