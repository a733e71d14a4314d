"""What a filler does next, played to the end of the blob."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mirror.oci.span import Span
from mirror.policy.fills.fill_steps import Await, Fetch, Take, next_step, piece_of
from mirror.policy.fills.span_blocks import cut, joined

_SIZE = 1000
_STARTS = st.integers(0, _SIZE - 1)
_SPANS = st.lists(
    st.builds(lambda start, length: Span(start, min(_SIZE, start + length)), _STARTS, st.integers(1, 90)), max_size=30
)
MIB = 1 << 20


def _from(offset: int, spans: list[Span]) -> list[Span]:
    cuts = (cut(span, Span(offset, _SIZE)) for span in joined(spans))
    return [span for span in cuts if span]


@given(_SPANS, _SPANS, st.integers(0, 999))
def test_every_byte_comes_once(here: list[Span], taken: list[Span], offset: int) -> None:
    """Taken, waited for or fetched: what is here or claimed is never fetched, and the end is reached."""
    begin, fetched, awaited = offset, list[Span](), 0
    while offset < _SIZE:
        step = next_step(offset, _SIZE, _from(offset, here), _from(offset, taken))
        if isinstance(step, Take):
            assert step.span.start == offset
            offset = step.span.stop
        elif isinstance(step, Await):
            # whoever claims it brings it
            awaited += 1
            here = [*here, *(span for span in joined(taken) if span.start <= step.reach < span.stop)]
            taken = [span for span in joined(taken) if not span.start <= step.reach < span.stop]
        else:
            stop = _SIZE if step.stop is None else step.stop
            assert stop > offset
            fetched.append(Span(offset, stop))
            offset = stop
    covered = joined([*here, *taken])
    assert all(not cut(one, other) for one in fetched for other in covered)
    total = sum(span.length for span in fetched)
    inside = sum(span.length for span in _from(begin, covered))
    assert total == _SIZE - begin - inside


@given(_SPANS, _SPANS, st.integers(0, 998))
def test_upstream_is_asked_before_anything_is_given(here: list[Span], taken: list[Span], offset: int) -> None:
    """Its answer gives the right to the blob: until then nothing is taken, and nobody is waited for."""
    step = next_step(offset, _SIZE, _from(offset, here), _from(offset, taken), answered=False)
    assert isinstance(step, Fetch)


@given(_SPANS, _SPANS, st.integers(0, 999))
def test_nobody_is_waited_for_without_patience(here: list[Span], taken: list[Span], offset: int) -> None:
    """What is here is taken all the same."""
    runs = _from(offset, here)
    step = next_step(offset, _SIZE, runs, _from(offset, taken), patient=False)
    assert step == (Take(runs[0]) if runs and runs[0].start == offset else step)
    assert not isinstance(step, Await)


def test_a_run_that_grows_is_taken_in_pieces_worth_it() -> None:
    """Each piece is a call of the store: below a megabyte it waits for more, as long as more comes."""
    size = 100 * MIB
    rest = [Span(MIB // 2, 8 * MIB)]
    assert next_step(0, size, [Span(0, MIB // 2)], rest) == Await(MIB // 2)
    assert next_step(0, size, [Span(0, MIB // 2)], []) == Take(Span(0, MIB // 2))
    assert next_step(0, size, [Span(0, MIB)], [Span(MIB, 8 * MIB)]) == Take(Span(0, MIB))


def test_hundreds_of_small_runs_are_not_worth_a_request_each() -> None:
    """Some bytes come twice then; a run at the end of the blob costs no request, and a large one is worth it."""
    size = 1000 * MIB
    small = [Span(number * MIB, number * MIB + 1000) for number in range(1, 900, 10)]
    end = Span(size - 1000, size)
    assert next_step(0, size, small, []) == Fetch(None, skips=True)
    assert next_step(0, size, [*small, end], []) == Fetch(end.start, skips=True)
    large = Span(500 * MIB, 503 * MIB)
    assert next_step(0, size, joined([*small, large]), []) == Fetch(large.start, skips=True)
    assert next_step(0, size, small[:60], []) == Fetch(small[0].start)


def test_a_piece_takes_seconds() -> None:
    """Of what the last one has brought, within bounds."""
    assert piece_of(0, 0) == 8 * MIB
    assert piece_of(8 * MIB, 100.0) == 8 * MIB
    assert piece_of(8 * MIB, 1.0) == 16 * MIB
    assert piece_of(64 * MIB, 0.1) == 64 * MIB
