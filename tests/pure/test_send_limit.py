"""Decisions of a fill."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.errors import (
    UpstreamCircuitOpen,
    UpstreamDenied,
    UpstreamError,
    UpstreamInvalid,
    UpstreamThrottled,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from mirror.fills.outages import Outages
from mirror.policy.send_limit import WITHHELD, Tries, may_send, may_send_of_part, next_try


@given(st.integers(0, 1 << 40), st.none() | st.integers(0, 1 << 40))
def test_4_the_end_is_held_back(received: int, size: int | None) -> None:
    """Row 4: before the digest is verified the end stays here, so that no wrong blob is ever complete; of one whose
    size nobody knows, the end of what has come.
    """
    if size is not None:
        received = min(received, size)
    sendable = may_send(received, size, verified=False)
    assert 0 <= sendable <= received
    whole = received if size is None else size
    assert sendable <= max(0, whole - WITHHELD)
    # no more is held back than has to be
    assert sendable == received or sendable == max(0, whole - WITHHELD)
    assert may_send(received, size, verified=True) == received


@given(st.integers(0, 1 << 30), st.integers(0, 1 << 30), st.none() | st.integers(1 << 30, 1 << 31))
def test_what_may_be_sent_only_grows(one: int, two: int, size: int | None) -> None:
    """More received never means less to send."""
    first, second = sorted((one, two))
    assert may_send(first, size, verified=False) <= may_send(second, size, verified=False)


@given(st.integers(0, 1 << 30), st.integers(1, 1 << 30), st.integers(1, 1 << 30))
def test_4_the_end_of_a_part_is_held_back(received: int, stop: int, size: int) -> None:
    """Row 4: no part of a blob is complete before the digest of the whole is verified; then all of it may leave."""
    received, stop = min(received, size), min(stop, size)
    assert may_send_of_part(may_send(received, size, verified=False), stop, size) < stop
    assert may_send_of_part(may_send(size, size, verified=True), stop, size) == size
    # and no more is held back than of the whole
    limit = may_send(received, size, verified=False)
    assert may_send_of_part(limit, stop, size) == min(limit, stop - WITHHELD)


def _unavailable() -> UpstreamUnavailable:
    return UpstreamUnavailable("broken", upstream="x")


def _next(error: UpstreamError, tries: Tries, *, waited: float = 0.0, jitter: float = 0.5) -> float | None:
    return next_try(error, tries, waited, 30.0, jitter)


def test_1_three_tries_without_progress() -> None:
    """Row 1: a broken body is resumed three times without a byte in between, with longer waits, then given up."""
    tries, waits = Tries(0.0).broken(1.0, progress=True), []
    for _ in range(4):
        waits.append(_next(_unavailable(), tries))
        tries = tries.broken(1.0, progress=False)
    assert waits[3] is None
    assert all(wait is not None and 0 < wait < 5 for wait in waits[:3])
    assert sorted(wait for wait in waits if wait) == waits[:3]
    assert tries.broken(9.0, progress=True) == Tries(9.0, breaks=1)


@given(st.integers(1, 3), st.floats(0, 1))
def test_jitter(failures: int, jitter: float) -> None:
    """The waits of many are spread, within bounds; a time-out is a broken body like others."""
    tries = Tries(0.0, breaks=failures)
    wait = _next(_unavailable(), tries, jitter=jitter)
    assert wait is not None
    assert 0.1 <= wait <= 1.3
    assert _next(UpstreamTimeout("stalled", upstream="x"), tries, jitter=jitter) == wait


@pytest.mark.parametrize("kind", [UpstreamInvalid, UpstreamDenied])
def test_what_is_not_worth_another_try(kind: type[UpstreamInvalid] | type[UpstreamDenied]) -> None:
    """Wrong bytes and refusals do not get better by asking again."""
    assert _next(kind("x", upstream="x"), Tries(0.0, refusals=1)) is None


def test_10_throttled() -> None:
    """Row 10: as long as upstream says, if that is not longer than clients would wait."""
    assert _next(UpstreamThrottled("x", upstream="x", retry_after=7), Tries(0.0, breaks=1)) == 7.5
    assert _next(UpstreamThrottled("x", upstream="x", retry_after=31), Tries(0.0, breaks=1)) is None
    assert _next(UpstreamThrottled("x", upstream="x", retry_after=1), Tries(0.0, refusals=4)) is None


@given(st.integers(0, 100), st.floats(0, 60), st.floats(0, 1))
def test_136_what_does_not_answer_is_waited_for(refusals: int, waited: float, jitter: float) -> None:
    """Row 136: however often it refuses, until patience is over; and never longer than some seconds at a time."""
    wait = _next(_unavailable(), Tries(0.0, breaks=1, refusals=refusals), waited=waited, jitter=jitter)
    assert (wait is not None) == (waited < 30 or refusals <= 3)
    assert wait is None or 0 < wait < 5


def test_136_our_own_circuit_counts_for_nothing() -> None:
    """Row 136: it is waited for as long as it says, but not beyond our patience."""
    error = UpstreamCircuitOpen("x", upstream="x", retry_after=4.0)
    tries = Tries(0.0, breaks=1, refusals=3)
    assert tries.refused(error) == tries
    assert tries.refused(_unavailable()).refusals == 4
    assert [_next(error, tries, waited=waited) for waited in (0.0, 28.0, 30.0)] == [4.05, 2.0, None]


def test_136_outages_that_have_begun_just_now() -> None:
    """Row 136: they count from their first refusal, and are sudden if something was sent shortly before."""
    outages = Outages()
    assert outages.waited("a", 0.0) == 0.0
    outages.refused("a", 0.0)
    assert (outages.waited("a", 5.0), outages.is_sudden("a")) == (5.0, False)
    outages.answered("a", 10.0)
    assert (outages.waited("a", 20.0), outages.is_sudden("a")) == (0.0, False)
    outages.refused("a", 60.0)
    outages.refused("a", 65.0)
    assert [outages.waited("a", now) for now in (60.0, 100.0)] == [0.0, 40.0]
    assert outages.is_sudden("a")
    outages.answered("a", 100.0)
    outages.refused("a", 161.0)
    assert not outages.is_sudden("a")
    for number in range(5000):
        outages.answered(str(number), 200.0)
        outages.refused(str(number), 200.0)
    assert not outages.is_sudden("0")
    assert len(outages._away) == len(outages._answered) == 1000
