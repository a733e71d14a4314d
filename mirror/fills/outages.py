"""When each registry stopped answering, as the fills of one process see it.

answered() ──> well ── refused() ──> away since then ── answered() ──> well
"""

from __future__ import annotations

from typing import Final

from mirror.aio.caches import LruCache

#: Seconds. An outage is sudden if it begins at most this long after the registry's last answer.
_LATELY: Final = 60.0
_MOST_REGISTRIES: Final = 1000


class Outages:
    """The outages of all registries, as the fills of one process see them.

    Every `now` is in seconds and must come from the same clock.
    """

    def __init__(self) -> None:
        self._answered: LruCache[str, float] = LruCache(_MOST_REGISTRIES, name="answering registries")
        self._away: LruCache[str, float] = LruCache(_MOST_REGISTRIES, name="absent registries")

    def answered(self, registry: str, now: float) -> None:
        """Records that the registry has begun to send a blob."""
        self._away.pop(registry, None)
        self._answered[registry] = now

    def refused(self, registry: str, now: float) -> None:
        """Records that the registry did not answer a fill. An outage counts from its first refusal."""
        if registry not in self._away:
            self._away[registry] = now

    def waited(self, registry: str, now: float) -> float:
        """Returns the seconds since the first refusal of the present outage; 0 if there is none."""
        return now - self._away.get(registry, now)

    def is_sudden(self, registry: str) -> bool:
        """True if the registry had begun to send a blob shortly before the first refusal of the present outage."""
        away, answered = self._away.get(registry), self._answered.get(registry)
        return away is not None and answered is not None and away - answered <= _LATELY
