"""How many requests the cache answered, and how many bytes it saved: totals, and differences of totals. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

#: Outcomes of answers that needed no download of their own; upstream may have confirmed the tag.
_WITHOUT_DOWNLOAD: Final = frozenset({"hit", "joined", "revalidated", "stale", "described", "redirected"})
#: Outcomes that count as misses. A HEAD that was passed on to upstream (`asked`) is one, too.
_WITH_DOWNLOAD: Final = frozenset({"miss", "bypass", "asked"})


@dataclass(frozen=True, slots=True)
class Traffic:
    """Totals of answered requests.

    `requests` counts answered requests for manifests and blobs, `hits` those that needed no download of their own.
    `sent` is bytes sent to clients, `received` bytes received from upstreams.
    """

    requests: int = 0
    hits: int = 0
    sent: int = 0
    received: int = 0

    @property
    def saved(self) -> int:
        """Bytes that upstreams did not have to send. 0 if more was received than sent, as after prefetching images."""
        return max(0, self.sent - self.received)

    @property
    def hit_ratio(self) -> float | None:
        """Share of hits, from 0 to 1; None before the first request."""
        return self.hits / self.requests if self.requests else None

    @classmethod
    def of(
        cls,
        requests: Iterable[tuple[Mapping[str, str], float]],
        sent: Iterable[tuple[Mapping[str, str], float]],
        received: Iterable[tuple[Mapping[str, str], float]],
    ) -> Traffic:
        """The totals of the metrics' counters, each given with its labels."""
        hits = misses = 0.0
        for labels, value in requests:
            if labels.get("kind") in ("manifest", "blob") and labels.get("status", "")[:1] in ("2", "3"):
                hits += value if labels.get("cache") in _WITHOUT_DOWNLOAD else 0
                misses += value if labels.get("cache") in _WITH_DOWNLOAD else 0
        return cls(
            int(hits + misses),
            int(hits),
            int(sum(value for _, value in sent)),
            int(sum(value for _, value in received)),
        )


def since(now: Traffic, before: Traffic) -> Traffic:
    """The traffic between two totals. If a total has shrunk, the counters were restarted: all of `now` is new."""
    if now.requests < before.requests or now.sent < before.sent or now.received < before.received:
        return now
    return Traffic(
        now.requests - before.requests,
        now.hits - before.hits,
        now.sent - before.sent,
        now.received - before.received,
    )


_Point = tuple[float, Traffic]


def add_point(points: list[_Point], now: float, traffic: Traffic, period: float) -> list[_Point]:
    """The points with one more, without those older than `period` seconds or in the future (the clock was set)."""
    return [point for point in points if now - period <= point[0] <= now] + [(now, traffic)]


def read_points(written: object) -> list[_Point]:
    """Read points back from lists `[at, requests, hits, sent, received]`. Invalid ones are skipped."""
    return [
        (float(point[0]), Traffic(*(int(part) for part in point[1:])))
        for point in (written if isinstance(written, list) else ())
        if isinstance(point, list) and len(point) == 5 and all(isinstance(part, int | float) for part in point)
    ]
