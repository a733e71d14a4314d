"""In which order the addresses of one upstream are tried."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from mirror.policy.upstream.retrying import Circuit

__all__ = ["in_order"]


def in_order(
    circuits: Sequence[Circuit], now: float, *, probing: Collection[int] = (), avoid: int | None = None
) -> list[int]:
    """Numbers of endpoints: as configured, then the one to `avoid`, then those that count as down.

    One whose pause is over is back in its place, for one call: `probing` are those that have that call under way. None
    is left out: when all are down, each is worth a try.
    """

    def place(number: int) -> tuple[int, int]:
        verdict = circuits[number].verdict(now)
        down = verdict.wait > 0 or (verdict.probe and number in probing)
        return (2 if down else 1 if number == avoid else 0, number)

    return sorted(range(len(circuits)), key=place)
