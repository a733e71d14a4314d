"""Which parts of a blob are sent before the whole is verified."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.oci.span import MOST_RANGES, Span, is_bounded
from mirror.policy.lazy_ranges import LARGEST, LazyRule, is_near, lazy_parts, merged

MB = 1 << 20


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
    ("header", "size", "parts"),
    [
        ("bytes=24999949-24999999", 25_000_000, [Span(24_999_949, 25_000_000)]),
        ("bytes=-51", 25_000_000, [Span(24_999_949, 25_000_000)]),
        ("bytes=9-10,0-3", 1000, [Span(9, 11), Span(0, 4)]),
        # a quarter, and one byte more
        ("bytes=0-249", 1000, [Span(0, 250)]),
        ("bytes=0-250", 1000, []),
        ("bytes=0-124,500-625", 1000, []),
        # the most bytes, and one more
        (f"bytes=0-{LARGEST - 1}", 1000 * MB, [Span(0, LARGEST)]),
        (f"bytes=0-{LARGEST}", 1000 * MB, []),
        # whoever says no end wants the rest
        ("bytes=999-", 1000, []),
        # the ordinary way says what is wrong with these
        ("bytes=1000-1001", 1000, []),
        ("bytes=9-3", 1000, []),
        ("bytes=" + "0-0," * MOST_RANGES + "1-1", 1000, []),
        (None, 1000, []),
        ("bytes=0-0", 0, []),
    ],
)
def test_small_bounded_parts_are_lazy(header: str | None, size: int, parts: list[Span]) -> None:
    assert lazy_parts(header, size) == tuple(parts)


def test_as_many_parts_as_podman_asks_for() -> None:
    header = "bytes=" + ",".join(f"{n * 100_000}-{n * 100_000 + 999}" for n in range(MOST_RANGES))
    assert len(lazy_parts(header, MOST_RANGES * 100_000)) == MOST_RANGES


@pytest.mark.parametrize(
    ("position", "prefix", "rate", "near"),
    [
        (5 * MB, 5 * MB, 0.0, True),
        (5 * MB - 1, 5 * MB, 0.0, False),  # it is in the prefix
        (6 * MB - 1, 5 * MB, 0.0, True),
        (6 * MB, 5 * MB, 0.0, False),
        (6 * MB, 5 * MB, 2.0 * MB, True),
        (7 * MB, 5 * MB, 2.0 * MB, False),
    ],
)
def test_a_fill_that_is_there_soon_is_waited_for(position: int, prefix: int, rate: float, *, near: bool) -> None:
    assert is_near(position, prefix, rate) is near


def test_the_whole_is_fetched_once_a_share_of_it_is_here() -> None:
    rule = LazyRule(share=0.5)
    assert not rule.has_enough(499, 1000)
    assert rule.has_enough(500, 1000)
    assert LazyRule(share=0).has_enough(0, 1000)
    assert not LazyRule(share=1).has_enough(999, 1000)
    assert LazyRule(share=1).has_enough(1000, 1000)


_SPANS = st.lists(st.tuples(st.integers(0, 200), st.integers(1, 40)).map(lambda at: Span(at[0], at[0] + at[1])))


@given(_SPANS, st.integers(0, 9))
def test_merged_spans_cover_the_same_bytes(spans: list[Span], gap: int) -> None:
    whole = merged(spans, gap)
    assert all(one.stop + gap < other.start for one, other in zip(whole, whole[1:], strict=False))
    covered = {byte for span in spans for byte in range(span.start, span.stop)}
    bytes_of_whole = {byte for span in whole for byte in range(span.start, span.stop)}
    assert covered <= bytes_of_whole
    if not gap:
        assert covered == bytes_of_whole
