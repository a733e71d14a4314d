"""The order in which the endpoints of one upstream are tried."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from mirror.policy.upstream.retrying import Circuit


def in_order(
    circuits: Sequence[Circuit], now: float, *, probing: Collection[int] = (), avoid: int | None = None
) -> list[int]:
    """The numbers of the endpoints in the order to try: as configured, then `avoid`, then those that are down.

    An endpoint whose pause is over returns to its configured place for one call, the probe. `probing` are the endpoints
    with a probe in progress. No endpoint is left out: if all are down, each is tried.
    """

    def place(number: int) -> tuple[int, int]:
        verdict = circuits[number].verdict(now)
        down = verdict.wait > 0 or (verdict.probe and number in probing)
        return (2 if down else 1 if number == avoid else 0, number)

    return sorted(range(len(circuits)), key=place)
