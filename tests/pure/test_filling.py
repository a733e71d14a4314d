"""Decisions of a fill."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.errors import UpstreamDenied, UpstreamInvalid, UpstreamThrottled, UpstreamTimeout, UpstreamUnavailable
from mirror.policy.filling import HELD_BACK, may_send, may_send_of_part, next_try


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
    assert sendable <= max(0, whole - HELD_BACK)
    # no more is held back than has to be
    assert sendable == received or sendable == max(0, whole - HELD_BACK)
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
    assert may_send_of_part(limit, stop, size) == min(limit, stop - HELD_BACK)


def _unavailable() -> UpstreamUnavailable:
    return UpstreamUnavailable("broken", upstream="x")


def test_1_three_tries_without_progress() -> None:
    """Row 1: a broken body is resumed three times without a byte in between, with longer waits, then given up."""
    waits = [next_try(_unavailable(), failures, 0.5) for failures in (1, 2, 3, 4)]
    assert waits[3] is None
    assert all(wait is not None and 0 < wait < 5 for wait in waits[:3])
    assert sorted(wait for wait in waits if wait) == waits[:3]


@given(st.integers(1, 3), st.floats(0, 1))
def test_jitter(failures: int, jitter: float) -> None:
    """The waits of many are spread, within bounds; a time-out is a broken body like others."""
    wait = next_try(_unavailable(), failures, jitter)
    assert wait is not None
    assert 0.1 <= wait <= 1.3
    assert next_try(UpstreamTimeout("stalled", upstream="x"), failures, jitter) == wait


@pytest.mark.parametrize("error", [UpstreamInvalid("x", upstream="x"), UpstreamDenied("x", upstream="x")])
def test_what_is_not_worth_another_try(error: UpstreamInvalid | UpstreamDenied) -> None:
    """Wrong bytes and refusals do not get better by asking again."""
    assert next_try(error, 1, 0.5) is None


def test_10_throttled() -> None:
    """Row 10: as long as upstream says, if that is not longer than clients would wait."""
    assert next_try(UpstreamThrottled("x", upstream="x", retry_after=7), 1, 0.5) == 7.5
    assert next_try(UpstreamThrottled("x", upstream="x", retry_after=31), 1, 0.5) is None
    assert next_try(UpstreamThrottled("x", upstream="x", retry_after=1), 4, 0.5) is None
