"""When something is due next, given when it ran last: every so often, or by a cron expression.

    never ran ── first ──> ok ── the next time ──> …
                     └──> failed ── sooner, later each time ──> …
                     └──> interrupted ── soon ──> …

What was missed while the mirror was off is made up for once. Nothing here reads a clock: the time is an argument. A
last run that lies in the future (a clock was set back) counts for nothing, so that no rule waits for a time to come
again.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from typing import Final, TypeAlias
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

__all__ = ["Cron", "Every", "Last", "Lease", "Plan", "next_run", "period_end"]

#: Seconds. Runs are spread over the first part of their period, and over no more than this.
_LONGEST_SPREAD: Final = 300.0
_SPREAD: Final = 0.1
#: Seconds after which a failed run is tried again, doubled by each further failure, up to the second.
_FIRST_RETRY: Final = 300.0
_LONGEST_RETRY: Final = 3600.0
#: Seconds after a start within which an interrupted run begins anew.
_SOON: Final = 15.0
#: Seconds by which clocks of the same machine may differ from themselves.
_CLOCK_SLACK: Final = 60.0


@dataclass(frozen=True, slots=True)
class Every:
    """So many seconds from start to start."""

    seconds: float

    def __str__(self) -> str:
        return f"every {_short(self.seconds)}"


@dataclass(frozen=True, slots=True)
class Cron:
    """Debian's cron: minute, hour, day of month, month, day of week; or six fields, seconds first.

    Where clocks are put forward, a time that does not exist is moved to the next that does; where they are put back,
    one that comes twice counts once, unless the minute or the hour is `*`. Raises `ValueError` that says what is wrong.
    """

    expression: str
    timezone: str = "UTC"

    def __post_init__(self) -> None:
        _zone(self.timezone)
        if self.after(0.0) is None:
            raise ValueError(f"{self.expression!r} is never due")

    def after(self, moment: float) -> float | None:
        """The first time after `moment` (epoch seconds both); None where there is none within 50 years."""
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
    """How it stands. Times in epoch seconds.

    `since`: when it was first known. `start`: of the last run, None before the first; `end` None: it runs, or was
    interrupted. `failures`: how many runs in a row have failed, the last one included.
    """

    since: float
    start: float | None = None
    end: float | None = None
    failures: int = 0

    @property
    def interrupted(self) -> bool:
        """Begun and not ended; whether it still runs is for the caller to know."""
        return self.start is not None and self.end is None


@dataclass(frozen=True, slots=True)
class Lease:
    """That another replica has a run for `seconds` yet; `done`: it has done it already."""

    seconds: float
    done: bool


def next_run(plan: Plan, last: Last, now: float, jitter: float) -> float:
    """When it is due, in epoch seconds; at `now` or before: at once.

    `jitter` within 0 to 1, always the same for the same thing, spreads things that are due at one time: over a tenth of
    their period, at most five minutes.
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
    """When the next run after one of `start` may come at the earliest, without any jitter."""
    if isinstance(plan, Every):
        return start + plan.seconds
    return plan.after(start) or start


def _first(plan: Plan, since: float, jitter: float) -> float:
    """Of `every` soon, of `cron` at its time."""
    if isinstance(plan, Every):
        return since + jitter * _spread(plan.seconds)
    return _regular(plan, since, jitter)


def _regular(plan: Plan, start: float, jitter: float) -> float:
    if isinstance(plan, Every):
        # begun at times that are spread already
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
