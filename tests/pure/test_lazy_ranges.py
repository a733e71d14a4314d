"""Which parts of a blob are sent before the whole is verified."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.oci.span import MOST_RANGES, Span, is_bounded
from mirror.policy.fills.lazy_ranges import LARGEST, MOST_PLACES, fetch_from, lazy_parts, places_of
from mirror.policy.rules import LazyRule

KB, MB = 1 << 10, 1 << 20
BLOCK = 64 * KB


@pytest.mark.parametrize(
    ("header", "bounded"),
    [
        ("bytes=5-9", True),
        ("bytes=-3", True),
        ("Bytes = 1-2, ,-9", True),
        ("bytes=5-", False),
        ("bytes=1-2,5-", False),
        ("bytes=", False),
        ("bytes=-", False),
        ("bytes=1-2,x", False),
        ("items=1-2", False),
    ],
)
def test_a_range_without_an_end_is_not_bounded(header: str, *, bounded: bool) -> None:
    assert is_bounded(header) is bounded


@pytest.mark.parametrize(
    ("header", "size", "parts", "places"),
    [
        # the last block is shorter
        ("bytes=24999949-24999999", 25_000_000, [Span(24_999_949, 25_000_000)], [Span(381 * BLOCK, 25_000_000)]),
        ("bytes=-51", 25_000_000, [Span(24_999_949, 25_000_000)], [Span(381 * BLOCK, 25_000_000)]),
        # in the order of the request; places near each other are one
        (f"bytes={BLOCK + 1}-{BLOCK + 2},0-3", MB, [Span(BLOCK + 1, BLOCK + 3), Span(0, 4)], [Span(0, 2 * BLOCK)]),
        (f"bytes=0-0,{9 * BLOCK}-{9 * BLOCK}", 9 * MB, None, [Span(0, 10 * BLOCK)]),
        (f"bytes=0-0,{10 * BLOCK}-{10 * BLOCK}", 9 * MB, None, [Span(0, BLOCK), Span(10 * BLOCK, 11 * BLOCK)]),
        # a quarter
        (f"bytes=0-{4 * BLOCK - 1}", MB, None, [Span(0, 4 * BLOCK)]),
        # the most bytes
        (f"bytes=1-{LARGEST - 1}", 1000 * MB, None, [Span(0, LARGEST)]),
    ],
)
def test_small_bounded_parts_are_lazy(header: str, size: int, parts: list[Span] | None, places: list[Span]) -> None:
    asked = lazy_parts(header, size, BLOCK)
    assert asked is not None
    assert list(asked.places) == places
    assert parts is None or list(asked.parts) == parts


@pytest.mark.parametrize(
    ("header", "size"),
    [
        # one byte more than a quarter, and than the most bytes, counted in blocks
        (f"bytes=0-{4 * BLOCK}", MB),
        (f"bytes=1-{LARGEST}", 1000 * MB),
        ("bytes=0-0", 4 * BLOCK - 1),
        # whoever says no end wants the rest
        ("bytes=999-", MB),
        # the ordinary way says what is wrong with these
        (f"bytes={MB}-{MB + 1}", MB),
        ("bytes=9-3", MB),
        ("bytes=" + "0-0," * MOST_RANGES + "1-1", MB),
        (None, MB),
        ("bytes=0-0", 0),
        # each place is a request
        ("bytes=" + ",".join(f"{n * MB}-{n * MB}" for n in range(MOST_PLACES + 1)), 1000 * MB),
    ],
)
def test_all_others_are_not(header: str | None, size: int) -> None:
    assert lazy_parts(header, size, BLOCK) is None


def test_as_many_parts_as_podman_asks_for() -> None:
    header = "bytes=" + ",".join(f"{n * 4000}-{n * 4000 + 999}" for n in range(MOST_RANGES))
    asked = lazy_parts(header, 100 * MB, BLOCK)
    assert asked is not None
    assert len(asked.parts) == MOST_RANGES
    assert len(asked.places) == 1


@pytest.mark.parametrize(
    ("start", "prefix", "rate", "first"),
    [
        # nobody fills the blob: what the prefix has is not fetched, but for the block in which it ends
        (0, 0, None, 0),
        (5 * MB, 0, None, 5 * MB),
        (5 * MB, 6 * MB + 9, None, 6 * MB),
        # a fill comes at most a MiB, or a second, later
        (5 * MB, 5 * MB, 0.0, 6 * MB),
        (5 * MB - 1, 4 * MB + 1, 0.0, 5 * MB),
        (5 * MB + 1, 4 * MB + 9, 0.0, 5 * MB + 1),
        (5 * MB, 4 * MB, 0.0, 5 * MB),
        (6 * MB, 5 * MB, 2.0 * MB, 7 * MB),
        (7 * MB, 5 * MB, 2.0 * MB, 7 * MB),
        (5 * MB, 9 * MB, 0.0, 10 * MB),
    ],
)
def test_what_comes_soon_by_a_fill_is_not_fetched(start: int, prefix: int, rate: float | None, first: int) -> None:
    assert fetch_from(start, prefix, rate, BLOCK) == first


def test_the_whole_is_fetched_once_a_share_of_it_is_here() -> None:
    rule = LazyRule(share=0.5)
    assert not rule.has_enough(499, 1000)
    assert rule.has_enough(500, 1000)
    assert LazyRule(share=0).has_enough(0, 1000)
    assert not LazyRule(share=1).has_enough(999, 1000)
    assert LazyRule(share=1).has_enough(1000, 1000)


_PARTS = st.lists(st.tuples(st.integers(0, 9 * MB), st.integers(1, MB)).map(lambda at: Span(at[0], at[0] + at[1])))


@given(_PARTS, st.integers(10 * MB, 11 * MB))
def test_places_have_every_part_and_end_at_blocks(parts: list[Span], size: int) -> None:
    places = places_of(parts, size, BLOCK)
    for part in parts:
        assert any(place.start <= part.start and part.stop <= place.stop for place in places)
    assert all(place.start % BLOCK == 0 and (place.stop % BLOCK == 0 or place.stop == size) for place in places)
    assert all(one.stop < other.start for one, other in pairwise(places))
    # an end of each place is wanted
    assert {place.start for place in places} <= {part.start // BLOCK * BLOCK for part in parts}
