"""The arithmetic of blocks, against sets of numbers."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from mirror.oci.span import Span
from mirror.policy.fills.span_blocks import (
    ABSENT,
    BLOCK,
    block_count,
    blocks_before,
    blocks_of,
    bytes_of,
    cut,
    gaps,
    joined,
    runs,
    without,
)

SIZES = st.integers(1, 20 * BLOCK)
OFFSETS = st.integers(0, 22 * BLOCK)
SPANS = st.builds(lambda a, b: Span(min(a, b), max(a, b)), st.integers(0, 60), st.integers(0, 60))


def _bytes(spans: list[Span]) -> set[int]:
    return {byte for span in spans for byte in range(span.start, span.stop)}


@given(SIZES, OFFSETS, OFFSETS)
def test_blocks_of_bytes(size: int, first: int, second: int) -> None:
    """They cover the bytes, and none of them is in vain; whole blocks stay as they are."""
    wanted = Span(min(first, second), max(first, second))
    inside = cut(wanted, Span(0, size))
    blocks = blocks_of(wanted, size)
    assert (inside is None) == (not blocks)
    if inside:
        whole = bytes_of(blocks, size)
        assert whole.start <= inside.start < whole.start + BLOCK
        assert whole.stop - BLOCK < inside.stop <= whole.stop <= size
        assert blocks_of(whole, size) == blocks == blocks_of(inside, size)


@given(SIZES, OFFSETS, OFFSETS)
def test_blocks_that_are_done(size: int, first: int, second: int) -> None:
    """None of them has a byte behind what is done; the last one of the blob is whole although it is shorter."""
    done = Span(min(first, second), max(first, second))
    blocks = blocks_before(done, size)
    if blocks:
        assert bytes_of(blocks, size).stop <= done.stop
        assert blocks.start * BLOCK <= done.start
    if done.start < size <= done.stop:
        assert blocks.stop == block_count(size)


@given(st.binary(max_size=40).map(lambda raw: bytes(byte % 3 for byte in raw)), st.integers(0, 9), st.booleans())
def test_runs(states: bytes, first: int, absent: bool) -> None:
    """Every block is in one run or in none, and runs do not touch."""
    found = list(runs(states, first, absent=absent))
    assert {number for run in found for number in run} == {
        number for number, state in enumerate(states, first) if (state == ABSENT) is absent
    }
    assert all(run for run in found)
    assert all(one.stop < other.start for one, other in itertools.pairwise(found))


@given(st.lists(SPANS, max_size=8))
def test_joined(spans: list[Span]) -> None:
    """The same bytes, in spans that do not touch."""
    found = joined(spans)
    assert _bytes(found) == _bytes(spans)
    assert all(one.stop < other.start for one, other in itertools.pairwise(found))


@given(SPANS, st.lists(SPANS, max_size=8))
def test_gaps(wanted: Span, spans: list[Span]) -> None:
    """What is wanted, without the rest."""
    assert _bytes(gaps(wanted, spans)) == _bytes([wanted]) - _bytes(spans)


@given(SPANS, st.lists(SPANS, max_size=8))
def test_without(whole: Span, others: list[Span]) -> None:
    """The same for numbers of blocks."""
    left = without(range(whole.start, whole.stop), [range(each.start, each.stop) for each in others])
    assert {number for run in left for number in run} == _bytes([whole]) - _bytes(others)
