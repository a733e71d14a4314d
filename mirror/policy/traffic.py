"""How much of what clients asked for was here: totals, and what a time of them comes to. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["Traffic", "add_point", "read_points", "since"]

#: Outcomes of answers that needed no download; upstream may have confirmed the tag.
_WITHOUT_DOWNLOAD: Final = frozenset({"hit", "joined", "revalidated", "stale", "described"})
#: A HEAD that upstream was asked for counts as well: it is not what a cache is for.
_WITH_DOWNLOAD: Final = frozenset({"miss", "bypass", "asked"})


@dataclass(frozen=True, slots=True)
class Traffic:
    """`requests` for manifests and blobs that were answered, `hits` of them without a download of their own; bytes
    `sent` to clients and `received` from upstreams.
    """

    requests: int = 0
    hits: int = 0
    sent: int = 0
    received: int = 0

    @property
    def saved(self) -> int:
        """Bytes that upstreams did not have to send; never below 0, as while images are fetched before anyone asks."""
        return max(0, self.sent - self.received)

    @property
    def hit_ratio(self) -> float | None:
        """0 to 1; None before the first request."""
        return self.hits / self.requests if self.requests else None

    @classmethod
    def of(
        cls,
        requests: Iterable[tuple[Mapping[str, str], float]],
        sent: Iterable[tuple[Mapping[str, str], float]],
        received: Iterable[tuple[Mapping[str, str], float]],
    ) -> Traffic:
        """Out of what the metrics count, by their labels."""
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

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "requests": self.requests,
            "hits": self.hits,
            "hit_ratio": None if self.hit_ratio is None else round(self.hit_ratio, 4),
            "sent": self.sent,
            "received": self.received,
            "saved": self.saved,
        }


def since(now: Traffic, before: Traffic) -> Traffic:
    """What came between two totals. A total that has shrunk began anew: then all of it is new."""
    if now.requests < before.requests or now.sent < before.sent or now.received < before.received:
        return now
    return Traffic(
        now.requests - before.requests,
        now.hits - before.hits,
        now.sent - before.sent,
        now.received - before.received,
    )


_Point = tuple[float, Traffic]


def add_point(points: list[_Point], at: float, traffic: Traffic, keep: float) -> list[_Point]:
    """With one more, without those older than `keep` seconds, or from the future (a clock was set)."""
    return [point for point in points if at - keep <= point[0] <= at] + [(at, traffic)]


def read_points(written: object) -> list[_Point]:
    """As they were written, `[at, requests, hits, sent, received]`; what makes no sense is passed over."""
    return [
        (float(one[0]), Traffic(*(int(part) for part in one[1:])))
        for one in (written if isinstance(written, list) else ())
        if isinstance(one, list) and len(one) == 5 and all(isinstance(part, int | float) for part in one)
    ]
