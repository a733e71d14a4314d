"""When something is done again and again, as settings say it: how often, or by a cron expression."""

from __future__ import annotations

from typing import Final

from mirror.policy.schedule import Cron, Every, Plan

#: Seconds between two runs of what has no schedule of its own.
_A_DAY: Final = 86400.0


def planned(every: float | None, cron: str | None, timezone: str) -> Plan:
    """When something is due: once a day if neither `every`, in seconds, nor `cron` is set. Raises `ValueError`."""
    if every is not None and cron is not None:
        raise ValueError("every and cron exclude each other")
    if cron is not None:
        return Cron(cron, timezone)
    if timezone != "UTC":
        raise ValueError("timezone is for cron only")
    return Every(_A_DAY if every is None else every)
