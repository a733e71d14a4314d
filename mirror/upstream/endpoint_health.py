"""The health of one address of an upstream, for status displays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mirror.policy.upstream.retrying import Circuit
from mirror.upstream.credentials.source import LoginState


@dataclass(frozen=True, slots=True)
class Health:
    """The health of the address `url`.

    `state` is `ok`, `failing` (the last calls got no answer), `down` (left alone because of that) or `throttled`
    (upstream asked to be left alone). `failures` counts the failed calls in a row. `retry_in` is the number of seconds
    until the address may be asked again. `logins` tell whether obtaining our credentials, and logging in with them,
    works. `reason` says why the last call failed, unless the state is `ok`.
    """

    url: str
    state: Literal["ok", "failing", "throttled", "down"]
    failures: int
    retry_in: float
    logins: tuple[LoginState, ...] = ()
    reason: str = ""


def health_of(
    url: str,
    circuits: tuple[Circuit, ...],
    throttled_for: float,
    now: float,
    logins: tuple[LoginState, ...] = (),
    trouble: str = "",
) -> Health:
    """The health of an address by the worst of its circuits. `now` is by the clock of the circuits.

    `throttled_for` is the number of seconds for which upstream still asks to be left alone, 0 or less for none.
    `trouble` is why the last call failed.
    """
    worst = max(circuits, key=lambda circuit: (circuit.delay > 0, circuit.failures))
    wait = worst.verdict(now).wait
    if throttled_for > max(0.0, wait):
        return Health(url, "throttled", worst.failures, throttled_for, logins, trouble)
    state: Literal["ok", "failing", "down"] = "down" if worst.delay else "failing" if worst.failures else "ok"
    return Health(url, state, worst.failures, max(0.0, wait), logins, "" if state == "ok" else trouble)
