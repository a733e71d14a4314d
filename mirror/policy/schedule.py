"""When a task is due next, given its last run: at a fixed interval, or by a cron expression.

    never ran ── first run ──> ok ── at its regular time ──> …
                     └──> failed ── retried after a growing delay ──> …
                     └──> interrupted ── soon ──> …

Runs that were missed while the mirror was off are made up for by one run. Nothing in this module reads a clock: the
time is an argument. A last run that lies in the future (the clock was set back) makes the task due at once, so that no
task waits until the clock reaches that time again.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from typing import Final, TypeAlias
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

#: Runs are spread over at most this many seconds, and over at most this part of their period.
_LONGEST_SPREAD: Final = 300.0
_SPREAD: Final = 0.1
#: Seconds after which a failed run is retried: the first value, doubled by each further failure, up to the second.
_FIRST_RETRY: Final = 300.0
_LONGEST_RETRY: Final = 3600.0
#: An interrupted run is repeated within this many seconds of its start.
_SOON: Final = 15.0
#: Seconds. A last run that began further in the future than this was dated by a wrong clock.
_CLOCK_SLACK: Final = 60.0


@dataclass(frozen=True, slots=True)
class Every:
    """A fixed interval, in seconds from start to start."""

    seconds: float

    def __str__(self) -> str:
        return f"every {_short(self.seconds)}"


@dataclass(frozen=True, slots=True)
class Cron:
    """A cron expression as Debian's cron reads it: minute, hour, day of month, month, day of week.

    Six fields are accepted, too; the first is then seconds. When clocks are put forward, a time that does not exist is
    moved to the next one that does. When clocks are put back, a time that comes twice counts once, unless the minute or
    the hour is `*`. Raises `ValueError` that says what is wrong.
    """

    expression: str
    timezone: str = "UTC"

    def __post_init__(self) -> None:
        _zone(self.timezone)
        if self.after(0.0) is None:
            raise ValueError(f"{self.expression!r} is never due")

    def after(self, moment: float) -> float | None:
        """The first due time after `moment` (both in epoch seconds); None if there is none within 50 years."""
        begin = datetime.fromtimestamp(moment, _zone(self.timezone))
        try:
            return next(CronSim(self.expression, begin)).timestamp()
        except StopIteration:
            return None
        except (CronSimError, AssertionError, ValueError, TypeError) as error:
            raise ValueError(f"not a cron expression: {self.expression!r} (write for example 0 3 * * *)") from error

    def __str__(self) -> str:
        return f"cron {self.expression}" + (f" ({self.timezone})" if self.timezone != "UTC" else "")


Plan: TypeAlias = Every | Cron


@dataclass(frozen=True, slots=True)
class Last:
    """The last run of a task. Times are in epoch seconds.

    `since` is when the task was first known. `start` is when the last run began, None before the first run. `end` is
    when that run ended; None if it still runs or was interrupted. `failures` is the number of runs in a row that have
    failed, including the last one.
    """

    since: float
    start: float | None = None
    end: float | None = None
    failures: int = 0

    @property
    def interrupted(self) -> bool:
        """Whether the run has begun and not ended. The caller must know whether it is still running."""
        return self.start is not None and self.end is None


@dataclass(frozen=True, slots=True)
class OtherLease:
    """Another replica's lease on a run, valid for `seconds` more. `done`: that replica has completed the run."""

    seconds: float
    done: bool


def next_run(plan: Plan, last: Last, now: float, jitter: float) -> float:
    """When the task is due, in epoch seconds. A time at or before `now` means at once.

    `jitter` is between 0 and 1 and always the same for the same task. It spreads tasks that are due at the same time
    over a tenth of their period, at most five minutes.
    """
    if last.start is None:
        return _first(plan, min(last.since, now), jitter)
    if last.start > now + _CLOCK_SLACK:
        return now
    if last.end is None:
        return last.start + jitter * _SOON
    regular = _regular(plan, last.start, jitter)
    if not last.failures:
        return regular
    wait = min(_LONGEST_RETRY, _FIRST_RETRY * 2.0 ** min(last.failures - 1, 20))
    return min(regular, max(last.start, min(last.end, now)) + wait * (1 + jitter * _SPREAD))


def period_end(plan: Plan, start: float) -> float:
    """The earliest time of the run after one that began at `start`, without jitter."""
    if isinstance(plan, Every):
        return start + plan.seconds
    return plan.after(start) or start


def _first(plan: Plan, since: float, jitter: float) -> float:
    """When the first run is due: soon for an interval, at its regular time for a cron expression."""
    if isinstance(plan, Every):
        return since + jitter * _spread(plan.seconds)
    return _regular(plan, since, jitter)


def _regular(plan: Plan, start: float, jitter: float) -> float:
    if isinstance(plan, Every):
        # no jitter: the last run began at a time that was spread already
        return start + plan.seconds
    due = period_end(plan, start)
    return due + jitter * _spread((plan.after(due) or due) - due)


def _spread(period: float) -> float:
    return min(_LONGEST_SPREAD, period * _SPREAD)


def _zone(name: str) -> tzinfo:
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"unknown time zone: {name!r} (write for example Europe/Berlin)") from error


def _short(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g}{unit}"
    return f"{seconds:g}s"


def spread(name: str) -> float:
    """A fraction from 0 to 1, always the same for this name: runs that are due at the same time begin apart by it."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest()) / 2**32
