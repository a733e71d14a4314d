"""Which fault comes when: drawn from the seed, before anything runs. Pure.

Faults are dealt like cards: each kind comes once before any comes again, so a short run has seen them all.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

#: What the proxy before the registry can do, each for a while, to a part of the requests.
UPSTREAM: Final = ("cut", "stall", "reset", "503", "429", "wrong-bytes", "no-range", "slow", "down")
REDIS: Final = ("redis-kill", "redis-stop", "redis-flush")
_WORKERS: Final = ("worker-kill", "worker-kill", "worker-kill")
_MIRROR: Final = ("restart",)

#: Seconds between two faults, at most: a long run has many, not long pauses. And by how much of it they come sooner or
#: later; in a short run by less, so that all of them come.
_LONGEST_GAP: Final = 9.0
_JITTER: Final = 0.5
_LITTLE_JITTER: Final = 0.2
#: A run at least so long (seconds) leaves the mirror and one worker alone in its last part, to see how memory grows.
_LONG: Final = 300.0
_LAST_RESTART: Final = 0.5


@dataclass(frozen=True, slots=True)
class Event:
    """A fault `at` seconds after the begin, for `seconds`, of a `share` of the requests where it is one of upstream."""

    at: float
    kind: str
    seconds: float = 0.0
    share: float = 1.0

    def __str__(self) -> str:
        lasting = f" for {self.seconds:.1f} s" if self.seconds else ""
        part = f", {self.share:.0%} of requests" if self.kind in UPSTREAM and self.share < 1 else ""
        return f"{self.at:7.1f} s  {self.kind}{lasting}{part}"


def draw_schedule(seed: int, seconds: float, *, redis: bool) -> list[Event]:
    """The faults of a run of `seconds`; the last tenth is left in peace."""
    draw = random.Random(f"schedule {seed}")
    deck = [*UPSTREAM, *_WORKERS, *_MIRROR, *(REDIS if redis else ())]
    at, end = seconds * 0.04, seconds * 0.9
    gap, jitter = _LONGEST_GAP, _JITTER
    if gap * len(deck) > end - at:
        gap, jitter = (end - at) / len(deck) / (1 + _LITTLE_JITTER), _LITTLE_JITTER
    events: list[Event] = []
    cards: list[str] = []
    while at < end:
        cards = cards or _shuffled(draw, deck)
        kind = cards.pop()
        if kind == "restart" and seconds >= _LONG and at > seconds * _LAST_RESTART:
            kind = "worker-kill"
        events.append(_event(draw, at, kind, min(end - at, gap * 2)))
        at += gap * draw.uniform(1 - jitter, 1 + jitter)
    return events


def _shuffled(draw: random.Random, deck: Sequence[str]) -> list[str]:
    return draw.sample(deck, len(deck))


def _event(draw: random.Random, at: float, kind: str, longest: float) -> Event:
    lasting = max(0.5, draw.uniform(0.4, 1.0) * longest)
    if kind == "down":
        return Event(at, kind, min(lasting, 6.0))
    if kind in UPSTREAM:
        return Event(at, kind, lasting, draw.uniform(0.1, 0.5))
    if kind in ("redis-kill", "redis-stop"):
        return Event(at, kind, min(lasting, 8.0))
    return Event(at, kind)
