"""Retries, waits, and when an upstream counts as down."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.policy.upstream.retrying import (
    CLOSED,
    LONGEST_THROTTLE,
    SHORTEST_THROTTLE,
    Circuit,
    Verdict,
    back_off,
    is_throttling,
    is_worth_retrying,
    parse_retry_after,
    throttle_seconds,
)

NOW = 1_700_000_000.0  # 2023-11-14 22:13:20 UTC


@pytest.mark.parametrize(
    ("status", "worth"),
    [
        *((status, True) for status in (None, 500, 502, 503, 504, 522, 408)),
        *((status, False) for status in (200, 400, 401, 403, 404, 429, 501, 505)),
    ],
)
def test_only_what_may_pass_is_tried_again(status: int | None, worth: bool) -> None:
    """Faults row 12: 5xx and broken connections, never what the request itself is to blame for, nor 429."""
    assert is_worth_retrying(status) is worth


def test_throttling_is_429_or_503_with_a_time() -> None:
    """Faults row 10: a 503 without Retry-After is only a failure."""
    assert is_throttling(429, None)
    assert is_throttling(429, "5")
    assert is_throttling(503, "5")
    assert not is_throttling(503, None)
    assert not is_throttling(500, "5")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120", 120.0),
        (" 0 ", 0.0),
        ("Tue, 14 Nov 2023 22:14:20 GMT", 60.0),
        ("Tue, 14 Nov 2023 22:00:00 GMT", 0.0),
        ("9" * 400, 999_999_999_999.0),
        (None, None),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("٣", None),
        ("Tue, 99 Nov 2023 99:14:20 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(text: str | None, seconds: float | None) -> None:
    """Both forms of RFC 9110, 10.2.3; a time that has passed is now; anything else is none."""
    assert parse_retry_after(text, NOW) == seconds


@given(st.text(max_size=60))
def test_any_retry_after_is_read_without_an_error(text: str) -> None:
    """What upstream sends never raises and never lies before now."""
    found = parse_retry_after(text, NOW)
    assert found is None or found >= 0


def test_a_hold_is_bounded() -> None:
    """Faults row 10: neither hammering nor one odd header for good."""
    assert throttle_seconds(0.0, 1) == SHORTEST_THROTTLE
    assert throttle_seconds(1e12, 1) == LONGEST_THROTTLE
    assert throttle_seconds(30.0, 5) == 30.0
    assert [throttle_seconds(None, strikes) for strikes in (1, 2, 3, 99)] == [2.0, 4.0, 8.0, 60.0]


@given(st.integers(1, 1000), st.floats(0, 1))
def test_a_back_off_grows_within_its_bounds(attempt: int, jitter: float) -> None:
    """Each wait lies in the upper half of its step, and steps double up to the longest."""
    step = min(5.0, 0.25 * 2.0 ** min(attempt - 1, 30))
    assert step / 2 <= back_off(attempt, jitter) <= step


def test_a_circuit_opens_after_failures_in_a_row() -> None:
    """Faults row 21: two failed dials are bad luck, three are an upstream that is down."""
    circuit = CLOSED.failed(0.0).failed(0.0)
    assert circuit.verdict(0.0) == Verdict()
    assert circuit.failed(0.0).verdict(0.25) == Verdict(wait=0.75)


def test_a_circuit_lets_a_probe_out_when_its_delay_is_over() -> None:
    """The delay doubles with each failed probe, up to 5 s; failures meanwhile do not count."""
    circuit, now, delays = Circuit(), 0.0, []
    for _ in range(3):
        circuit = circuit.failed(now)
    for _ in range(7):
        assert circuit.failed(now) == circuit
        delays.append(circuit.verdict(now).wait)
        now += delays[-1]
        assert circuit.verdict(now) == Verdict(probe=True)
        circuit = circuit.failed(now)
    assert delays == [1.0, 2.0, 4.0, 5.0, 5.0, 5.0, 5.0]
