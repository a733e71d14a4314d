"""How one address of an upstream is doing, for whoever looks."""

from __future__ import annotations

from dataclasses import dataclass

from mirror.policy.upstream.retrying import Circuit
from mirror.upstream.credentials.source import LoginState

__all__ = ["Health", "health_of"]


@dataclass(frozen=True, slots=True)
class Health:
    """`state` is `ok`, `failing` (some calls in a row got no answer), `down` (left alone), `held` (it asked to be left
    alone). `retry_in` are the seconds until it may be asked again. `logins` are how having our credentials went, and
    being let in with them.
    """

    url: str
    state: str
    failures: int
    retry_in: float
    logins: tuple[LoginState, ...] = ()


def health_of(
    url: str, circuits: tuple[Circuit, ...], held_for: float, now: float, logins: tuple[LoginState, ...] = ()
) -> Health:
    """The worst of what is known; `now` is the clock of the circuits, `held_for` in seconds."""
    worst = max(circuits, key=lambda one: (one.delay > 0, one.failures))
    wait = worst.verdict(now).wait
    if held_for > max(0.0, wait):
        return Health(url, "held", worst.failures, held_for, logins)
    state = "down" if worst.delay else "failing" if worst.failures else "ok"
    return Health(url, state, worst.failures, max(0.0, wait), logins)
