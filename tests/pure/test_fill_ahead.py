"""How many connections a blob gets, and which bytes each of them fetches: by clocks and bytes of the test's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirror.oci.span import Span
from mirror.policy.fills.fill_ahead import LEAST_REST, RampUp, further_span, is_straggler, own_stop
from mirror.policy.fills.span_blocks import BLOCK, gaps

_MIB = 1 << 20
_GIB = 1 << 30
_TICK = 0.05

#: The bytes a second of all of so many connections.
Link = Callable[[int], float]


def _each(rate: float) -> Link:
    """A limit for each connection."""
    return lambda connections: connections * rate


def _shared(rate: float) -> Link:
    """A limit for all of them."""
    return lambda connections: rate


@dataclass
class _Fill:
    """One fill over a link, step by step; each connection has the same share of its rate."""

    size: int
    link: Link
    ramp: RampUp
    now: float = 0.0
    received: float = 0.0
    #: Spans that are fetched, by who fetches them (None: the filler), and how far they have come.
    running: dict[int | None, tuple[Span, float]] = field(default_factory=dict)
    done: list[Span] = field(default_factory=list)
    prefix: int = 0
    most_open: int = 0
    requests: int = 0
    _next: int = 0

    def run(self) -> float:
        """To the last byte; the seconds that it took."""
        for _ in range(200_000):
            self._own()
            if self.prefix == self.size and not self.running:
                return self.now
            self._step()
        raise AssertionError("it does not end")

    def _own(self) -> None:
        """The filler takes what is here, and asks for the next gap."""
        while here := next((span for span in self.done if span.start <= self.prefix < span.stop), None):
            self.prefix = here.stop
        is_coming = any(span.start <= self.prefix < span.stop for span, _ in self.running.values())
        if None in self.running or self.prefix == self.size or is_coming:
            return
        stop = own_stop(self.ramp, self.prefix, self.size, self.now) or self.size
        ahead = [span.start for span, _ in self.running.values()] + [span.start for span in self.done]
        self._begin(None, Span(self.prefix, min([stop, *(start for start in ahead if start > self.prefix)])))

    def _begin(self, who: int | None, span: Span) -> None:
        for other in [*self.done, *(each for each, _ in self.running.values())]:
            assert span.stop <= other.start or other.stop <= span.start, "a byte twice"
        assert 0 <= span.start < span.stop <= self.size
        if who is not None:
            assert not span.start % BLOCK
            assert not span.stop % BLOCK or span.stop == self.size
        self.running[who] = span, float(span.start)
        self.requests += 1
        self.most_open = max(self.most_open, len(self.running))

    def _further(self) -> None:
        while sum(who is not None for who in self.running) + 1 < self.ramp.wanted:
            own = self.running.get(None)
            wanted = Span(own[0].stop if own else self.prefix, self.size)
            free = gaps(wanted, [*self.done, *(span for span, _ in self.running.values())])
            span = further_span(self.ramp, free, self.size)
            if span is None:
                return
            self._next += 1
            self._begin(self._next, span)
            self.ramp.is_sending(self.now, int(self.received))

    def _step(self) -> None:
        rate = self.link(len(self.running)) / max(1, len(self.running))
        self.now += _TICK
        for who, (span, at) in list(self.running.items()):
            reached = min(float(span.stop), at + rate * _TICK)
            self.received += reached - at
            self.running[who] = span, reached
            if who is None:
                self.prefix = int(reached)
            if reached >= span.stop:
                del self.running[who]
                self.done.append(span)
        self.ramp.sample(self.now, int(self.received), self.size - int(self.received))
        self._further()


def _fill(link: Link, *, size: int = _GIB, most: int = 4, known: int | None = None) -> tuple[_Fill, float]:
    fill = _Fill(size, link, RampUp(most, known))
    return fill, fill.run()


def test_a_limit_of_each_connection() -> None:
    """All connections are used, after a short ramp: the whole takes little more than a fourth."""
    fill, seconds = _fill(_each(40 * _MIB))
    assert (fill.ramp.wanted, fill.ramp.is_settled, fill.ramp.has_learnt) == (4, True, True)
    assert fill.most_open == 4
    assert 1024 / 40 / seconds > 3.3


def test_a_limit_of_all_connections() -> None:
    """The second connection brings nothing: it is given back, and the rest comes by one request."""
    fill, seconds = _fill(_shared(100 * _MIB))
    assert (fill.ramp.wanted, fill.ramp.is_settled, fill.ramp.has_learnt) == (1, True, True)
    assert fill.most_open == 2
    assert seconds < 1024 / 100 * 1.02
    assert fill.requests < 20


def test_a_limit_that_three_reach() -> None:
    """The fourth one is given back."""
    fill, _ = _fill(lambda connections: min(connections, 3) * 40 * _MIB)
    assert (fill.ramp.wanted, fill.ramp.is_settled) == (3, True)


def test_a_fast_upstream_is_left_alone() -> None:
    """What is here in a moment gets no second connection, and hardly more than one request."""
    fill, _ = _fill(_each(1000 * _MIB))
    assert fill.most_open == 1
    assert fill.requests <= 4
    assert not fill.ramp.has_learnt


def test_what_was_best_is_not_tried_again() -> None:
    """All connections at once, or one request."""
    fill, seconds = _fill(_each(40 * _MIB), known=4)
    assert 1024 / 40 / seconds > 3.5
    assert not fill.ramp.has_learnt
    fill, _ = _fill(_each(40 * _MIB), known=1)
    assert (fill.requests, fill.most_open) == (1, 1)
    assert _fill(_each(_MIB), size=64 * _MIB, known=9)[0].most_open == 4


def test_one_connection_is_one_request() -> None:
    """As without any of this."""
    fill, _ = _fill(_each(_MIB), most=1)
    assert (fill.requests, fill.most_open) == (1, 1)


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(LEAST_REST, 2 * _GIB),
    most=st.integers(1, 8),
    rate=st.integers(64 << 10, 2 * _GIB),
    useful=st.integers(1, 8),
    known=st.none() | st.integers(1, 8),
)
def test_any_upstream(size: int, most: int, rate: int, useful: int, known: int | None) -> None:
    """Each byte comes once (`_begin` asserts it), all of them in the end, by no more connections than allowed."""
    rate = max(rate, size // 4000)
    fill, _ = _fill(lambda connections: min(connections, useful) * rate, size=size, most=most, known=known)
    assert fill.prefix == size
    assert sum(span.length for span in fill.done) == size
    assert fill.most_open <= most


@pytest.mark.parametrize("end", ["lost", "alone"])
def test_a_connection_that_fails(end: str) -> None:
    """It is not replaced, and no more are tried."""
    ramp = RampUp(4, 3)
    ramp.lost()
    assert (ramp.wanted, ramp.is_settled, ramp.has_learnt) == (2, True, False)
    ramp = RampUp(4)
    for tick in range(20):
        ramp.sample(tick * _TICK, int(tick * _TICK * _MIB), _GIB)
    assert ramp.wanted == 2
    (ramp.lost if end == "lost" else ramp.alone)()
    ramp.is_sending(2.0, 0)
    for tick in range(20, 100):
        ramp.sample(tick * _TICK, int(tick * _TICK * _MIB), _GIB)
    assert (ramp.wanted, ramp.is_settled) == (1, True)


def test_a_trial_begins_with_the_first_byte() -> None:
    """However long the connection takes to open."""
    ramp = RampUp(2)
    received = 0
    for tick in range(200):
        received += _MIB
        ramp.sample(tick * _TICK, received, _GIB)
    assert (ramp.wanted, ramp.is_settled) == (2, False)
    ramp.is_sending(10.0, received)
    for tick in range(200, 230):
        received += 2 * _MIB
        ramp.sample(tick * _TICK, received, _GIB)
    assert (ramp.wanted, ramp.is_settled) == (2, True)


def test_a_machine_that_is_slower_than_upstream() -> None:
    """If bytes wait for it, no further connection is tried, and one that is on trial is given back."""
    ramp = RampUp(4)
    for tick in range(100):
        ramp.sample(tick * _TICK, tick * _MIB, _GIB, 1.0)
    assert (ramp.wanted, ramp.is_settled, ramp.is_full) == (1, False, True)
    assert own_stop(ramp, 100 * _MIB, _GIB, 5.0) is None
    ramp = RampUp(4)
    for tick in range(10):
        ramp.sample(tick * _TICK, tick * _MIB, _GIB, 0.0)
    assert ramp.wanted == 2
    ramp.is_sending(0.5, 10 * _MIB)
    for tick in range(10, 24):
        ramp.sample(tick * _TICK, tick * _MIB, _GIB, 1.0)
    assert (ramp.wanted, ramp.is_settled, ramp.has_learnt) == (1, True, False)


def test_who_is_not_waited_for() -> None:
    """A connection without a byte at once, another one when it has brought less than half of what it should."""
    assert not is_straggler(0.4, 0, 1000.0, has_begun=False)
    assert is_straggler(0.6, 0, 1000.0, has_begun=False)
    assert not is_straggler(0.9, 0, 1000.0, has_begun=True)
    assert not is_straggler(2.0, 1100, 1000.0, has_begun=True)
    assert is_straggler(2.0, 900, 1000.0, has_begun=True)
    assert is_straggler(1.0, 0, 0.0, has_begun=True)
    assert not is_straggler(1.0, 1, 0.0, has_begun=True)
