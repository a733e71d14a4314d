"""Requests to a bucket that is down, or throttles: who may send one, and when."""

from __future__ import annotations

import pytest

from mirror.errors import BucketAbsent, BucketUnavailable
from mirror.store.cloud.request_gate import RequestGate


class _Clock:
    """Time that passes only while somebody waits."""

    def __init__(self) -> None:
        self.time = 100.0
        self.waits: list[float] = []

    def now(self) -> float:
        return self.time

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.time += seconds


def _gate(clock: _Clock, rate: float | None = None) -> RequestGate:
    return RequestGate("s3://images", rate, now=clock.now, wait=clock.wait)


def _fail(gate: RequestGate, clock: _Clock, times: int = 3) -> None:
    for _ in range(times):
        gate.failed(gate.enter(clock.time + 1), "the connection is refused")


def test_failures_in_a_row_begin_an_outage() -> None:
    """A success in between begins the count anew; during an outage callers are refused at once, with the reason."""
    clock = _Clock()
    gate = _gate(clock)
    _fail(gate, clock, 2)
    gate.succeeded(gate.enter(clock.time))
    _fail(gate, clock, 2)
    assert not gate.is_down
    _fail(gate, clock, 1)
    assert gate.is_down
    with pytest.raises(BucketUnavailable, match="s3://images does not answer: the connection is refused") as refused:
        gate.enter(clock.time + 60)
    assert refused.value.retry_after == 1.0
    assert clock.waits == []
    assert "s3://images" not in refused.value.public


def test_a_store_without_the_bucket_is_down_at_once() -> None:
    """One such answer is enough, and any other success ends it."""
    clock = _Clock()
    gate = _gate(clock)
    gate.failed(gate.enter(clock.time), "the bucket does not exist", misses=True)
    assert gate.is_down
    assert gate.misses_bucket
    assert gate.health().reason == "the bucket does not exist"
    with pytest.raises(BucketAbsent, match=r"^s3://images: the bucket does not exist$"):
        gate.enter(clock.time + 60)
    clock.time += 1
    gate.succeeded(gate.enter(clock.time))
    assert not gate.is_down
    assert not gate.misses_bucket


def test_one_trial_after_each_pause() -> None:
    """The pause is doubled by each trial that fails, up to half a minute, and the first success ends the outage."""
    clock = _Clock()
    gate = _gate(clock)
    _fail(gate, clock)
    pauses = []
    for _ in range(7):
        before = clock.time
        while True:
            try:
                ticket = gate.enter(clock.time)
                break
            except BucketUnavailable as error:
                clock.time += error.retry_after
        with pytest.raises(BucketUnavailable):  # another one, during the trial
            gate.enter(clock.time)
        pauses.append(clock.time - before)
        gate.failed(ticket, "still")
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    clock.time += 30
    gate.succeeded(gate.enter(clock.time))
    assert not gate.is_down
    gate.succeeded(gate.enter(clock.time))
    _fail(gate, clock)
    clock.time += 1.0
    gate.enter(clock.time)  # the first pause is short again


def test_a_trial_that_is_given_up_is_followed_by_another() -> None:
    """Whoever gives up proves nothing, and keeps nobody out."""
    clock = _Clock()
    gate = _gate(clock)
    _fail(gate, clock)
    clock.time += 1
    gate.withdraw(gate.enter(clock.time))
    gate.succeeded(gate.enter(clock.time))
    assert not gate.is_down


def test_results_from_before_a_change_do_not_count() -> None:
    """Fifty requests that fail together begin one outage; one that began before it, and succeeds late, ends none."""
    clock = _Clock()
    gate = _gate(clock)
    tickets = [gate.enter(clock.time) for _ in range(51)]
    for ticket in tickets[1:]:
        gate.failed(ticket, "timeout")
    gate.succeeded(tickets[0])
    assert gate.is_down
    clock.time += 1
    gate.succeeded(gate.enter(clock.time))
    assert not gate.is_down


def test_throttling_slows_all_down() -> None:
    """The pause is common, doubles with each answer that throttles after it, and shrinks with successes."""
    clock = _Clock()
    gate = _gate(clock)
    rests = []
    for _ in range(4):
        tickets = [gate.enter(clock.time + 60) for _ in range(5)]
        begin = clock.time
        for ticket in tickets:
            gate.throttled(ticket)  # five at once are one
        gate.succeeded(tickets[0])
        gate.enter(clock.time + 60)
        rests.append(clock.time - begin)
    assert all(0.25 <= rest <= 0.25 * 1.5 * 2 for rest in rests), rests
    for _ in range(8):
        gate.throttled(gate.enter(clock.time + 60))
    with pytest.raises(BucketUnavailable, match="throttles") as refused:
        gate.enter(clock.time + 1)
    assert refused.value.retry_after > 1
    assert not gate.is_down
    clock.time += 60
    assert "throttled" in repr(gate)
    for _ in range(8):
        gate.succeeded(gate.enter(clock.time))
    assert "throttled" not in repr(gate)


def test_a_rate_is_kept() -> None:
    """Requests beyond it wait, up to their deadline; so does work of many requests, for what came before it."""
    clock = _Clock()
    gate = _gate(clock, rate=10)
    begin = clock.time
    for _ in range(30):
        gate.succeeded(gate.enter(clock.time + 1))
    assert clock.time - begin == pytest.approx(3.0)
    gate.succeeded(gate.enter(clock.time, cost=20))
    gate.succeeded(gate.enter(clock.time, cost=20))
    assert 3.0 + 20 / 10 <= clock.time - begin <= 3.0 + 20 / 5


def test_a_large_upload_leaves_half_of_the_rate_to_reads() -> None:
    """Ten pushes of 10 GiB at 25 requests per second: the next read waits no longer than without them, or twice."""
    clock = _Clock()
    gate = _gate(clock, rate=25)
    for _ in range(10):
        gate.succeeded(gate.enter(clock.time + 15, cost=1283))
        before = clock.time
        gate.succeeded(gate.enter(clock.time + 15))
        assert clock.time - before <= 2 / 25
    begin = clock.time
    for _ in range(100):
        gate.succeeded(gate.enter(clock.time + 15))
    assert clock.time - begin <= 100 / 12.5


def test_what_would_wait_beyond_its_deadline_for_the_rate_is_refused_at_once() -> None:
    """And takes nothing of the rate from those that come later."""
    clock = _Clock()
    gate = RequestGate("s3://images", 1, now=clock.now, wait=clock.waits.append)
    for _ in range(5):
        gate.enter(clock.time + 5)
    for _ in range(5):
        with pytest.raises(BucketUnavailable, match="requests_per_second"):
            gate.enter(clock.time + 5)
    clock.time += 1
    gate.enter(clock.time + 5)
    assert clock.waits == [1, 2, 3, 4, 5, 5]
