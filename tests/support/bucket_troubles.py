"""What goes wrong between mirrors and a bucket in a storm: one fault after the other, each until it has happened."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

from tests.support.engines.fault_proxy import (
    Answer,
    CutAnswer,
    CutRequest,
    Fault,
    FaultProxy,
    LostAnswer,
    Reset,
    Silence,
    SlowAnswer,
    StaleListing,
    StalledAnswer,
    StoreCall,
)
from tests.support.process import eventually

#: How long a fault may take to happen, in seconds: clients that are slow for other reasons cause none.
_PATIENCE: Final = 600.0


class BucketTroubles:
    """`proxies` are all before one store; those of a fault are drawn. `meanwhile` returns after a while of work."""

    def __init__(self, proxies: Sequence[FaultProxy], dice: random.Random, meanwhile: Callable[[], object]) -> None:
        self._proxies = proxies
        self._dice = dice
        self._meanwhile = meanwhile
        #: By name; each returns once it is over.
        self.kinds: Mapping[str, Callable[[], None]] = {
            "down": partial(self._break, Reset),
            "silent": partial(self._break, Silence, few=True),
            "throttled": partial(self._break, lambda: Answer(503, "SlowDown", {"Retry-After": "1"})),
            "failing": partial(self._break, lambda: Answer(500, "InternalError")),
            "refused": partial(self._break, lambda: Answer(403, "ExpiredToken")),
            "cut answers": partial(self._break, lambda: CutAnswer(dice.randrange(100_000)), some=True),
            "stalled": partial(self._break, lambda: StalledAnswer(dice.randrange(100_000)), few=True),
            "cut requests": partial(self._break, lambda: CutRequest(dice.randrange(100_000)), some=True),
            "lost answers": partial(self._break, LostAnswer, some=True),
            "slow": partial(self._break, lambda: SlowAnswer(1_000_000), some=True),
            "stale listings": self._stale_listings,
        }

    def _drawn(self) -> Sequence[FaultProxy]:
        return self._dice.sample(self._proxies, self._dice.randrange(len(self._proxies)) + 1)

    def _break(self, fault: Callable[[], Fault], *, some: bool = False, few: bool = False) -> None:
        """Do this to requests until it has happened a few times; `some`: not to all of them."""
        share = self._dice.choice((0.1, 0.5)) if some else 1.0

        def where(call: StoreCall) -> bool:
            return self._dice.random() < share

        drawn = self._drawn()

        def happened() -> int:
            return sum(sum(proxy.happened.values()) for proxy in drawn)

        # while nothing passes, a mirror asks every half minute only
        wanted = happened() + (2 if few else self._dice.randrange(3, 30 if some else 8))
        for proxy in drawn:
            proxy.cause(fault(), where=where)
        eventually(lambda: happened() >= wanted, "it happens", timeout=_PATIENCE)
        for proxy in drawn:
            proxy.heal()

    def _stale_listings(self) -> None:
        drawn = self._drawn()
        part = self._dice.choice(("_tags", "_manifests", "states/", "repositories/"))
        for proxy in drawn:
            proxy.cause(StaleListing(part), where=lambda call: call.lists)
        self._meanwhile()
        for proxy in drawn:
            proxy.heal()
