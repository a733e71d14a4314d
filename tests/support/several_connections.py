"""Blobs of a megabyte that come over several connections, as large ones do, and an upstream whose faults meet some of
them.

    small_parts(monkeypatch.setattr)      # or `ForkedWorkers(config, small_parts=True)`
    held = HeldConnections(registry, Whose.FURTHER)
    registry.fail("blobs", reset(1000))   # meets the first further connection, while the filler's own is open
    ... ask a mirror for a blob whose size it knows ...
    assert held.were_open

Requests for the blob come in this order, of which the held ones stand still behind their first bytes:

    the filler's own ── held until both others are there
    further, further ── meet the faults (`Whose.FURTHER`), or are held until the next one is there (`Whose.FILLER`)
    the filler's next ─ meets the faults then
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Final

from mirror.fills import further_connections, out_of_turn
from mirror.fills.further_connections import ConnectionMemory
from mirror.policy.fills import fill_ahead, fill_steps
from mirror.policy.fills.span_blocks import BLOCK
from mirror.repository import proxied_blobs
from tests.support.fake_registry import FakeRegistry, Fault, stall
from tests.support.process import PATIENCE
from tests.support.scripted import Answering, Request, Script, Stall

#: Connections of a blob, with the filler's own.
CONNECTIONS: Final = 3
_SMALL: Final = {
    "_LEAST_PIECE": 2 * BLOCK,
    "_MOST_PIECE": 3 * BLOCK,
    "_LAST_PIECE": BLOCK,
    "_WINDOW": 0.02,
    "_SOON": 0.0,
    "_TRIAL_AT_LEAST": 0.01,
    "_TRIAL_WHOLE": 0.02,
    "_TRIAL_AT_MOST": 0.1,
    # a machine that is busy is no upstream that is slow
    "_LATE": 60.0,
    "_SLOW": 60.0,
}
_BEST: Final = ConnectionMemory.best


def small_parts(setting: Callable[[object, str, object], None]) -> None:
    """Small blobs come in parts of two blocks, and over three connections unless that is known to be wrong. `setting`
    sets an attribute of a module or class.
    """
    for module in (fill_ahead, out_of_turn, proxied_blobs):
        setting(module, "LEAST_REST", 4 * BLOCK)
    setting(fill_steps, "_LEAST_PIECE", 2 * BLOCK)
    for name, value in _SMALL.items():
        setting(fill_ahead, name, value)
    setting(further_connections, "_TICK", 0.005)
    setting(ConnectionMemory, "best", _best)


def _best(memory: ConnectionMemory, upstream: str) -> int | None:
    known = _BEST(memory, upstream)
    return CONNECTIONS if known is None else known


class Whose(Enum):
    """Which connections meet the faults of an upstream."""

    FURTHER = "further"
    FILLER = "filler's"


class _Gate(Stall):
    """Stands still until so many requests have come in all."""

    def __init__(self, registry: FakeRegistry, count: int) -> None:
        super().__init__()
        self._changed = registry.arrivals
        self._registry = registry
        self._count = count
        self._is_over = False
        #: True if it was opened by the last of these requests.
        self.has_opened = False

    def _is_enough(self) -> bool:
        return self._registry.count("blobs") >= self._count

    def wait(self) -> None:
        """By the upstream's thread."""
        self.reached.set()
        with self._changed:
            self._changed.wait_for(lambda: self._is_over or self._is_enough(), PATIENCE)
            self.has_opened = self._is_enough()

    def release(self) -> None:
        """Let the script go on."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()


class HeldConnections:
    """Holds the first connections of the next blob that is asked for. To be made before the faults are queued."""

    def __init__(self, registry: FakeRegistry, whose: Whose) -> None:
        self._registry = registry
        self._gates: list[_Gate] = []
        self._before = registry.count("blobs")
        self._wanted = 1 if whose is Whose.FURTHER else CONNECTIONS
        registry.fail("blobs", self._hold(CONNECTIONS))
        registry.fail("blobs", self._hold(CONNECTIONS + 1), times=self._wanted - 1)

    def _hold(self, count: int) -> Fault:
        def hold(request: Request, answer: Answering) -> Script:
            self._gates.append(_Gate(self._registry, self._before + count))
            return stall(self._gates[-1], 1000)(request, answer)

        return hold

    @property
    def were_open(self) -> bool:
        """True if all of them stood still in their middle when the next request came."""
        return [gate.has_opened for gate in self._gates] == [True] * self._wanted
