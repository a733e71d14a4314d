"""Since when each registry does not answer, as the fills of one process see it.

answered() ──> well ── refused() ──> away since then ── answered() ──> well
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from mirror.aio.latest import put_latest

__all__ = ["Outages"]

#: Seconds: an outage that began longer than this after the last answer is none that downloads wait out.
_LATELY: Final = 60.0
_MOST_REGISTRIES: Final = 1000


class Outages:
    """Of all registries, as the fills of one process see them. All times are those of one clock, in seconds."""

    def __init__(self) -> None:
        self._answered: OrderedDict[str, float] = OrderedDict()
        self._away: OrderedDict[str, float] = OrderedDict()

    def answered(self, registry: str, now: float) -> None:
        """It has begun to send a blob."""
        self._away.pop(registry, None)
        put_latest(self._answered, registry, now, _MOST_REGISTRIES)

    def refused(self, registry: str, now: float) -> None:
        """It has not answered a fill."""
        if registry not in self._away:
            put_latest(self._away, registry, now, _MOST_REGISTRIES)

    def waited(self, registry: str, now: float) -> float:
        """Seconds since it was first found not to answer; 0 if it answers."""
        return now - self._away.get(registry, now)

    def is_sudden(self, registry: str) -> bool:
        """Whether it had begun to send a blob shortly before it was first found not to answer."""
        away, answered = self._away.get(registry), self._answered.get(registry)
        return away is not None and answered is not None and away - answered <= _LATELY
