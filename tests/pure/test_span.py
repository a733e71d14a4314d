"""Ranges as values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.errors import RangeInvalid, TooManyRanges
from mirror.oci.span import MOST_RANGES, Span, parse_content_range, parse_ranges

_BIG = "9" * 30


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        ("bytes=0-0", Span(0, 1)),
        ("bytes=0-", Span(0, 10)),
        ("bytes=3-5", Span(3, 6)),
        ("bytes=9-9", Span(9, 10)),
        ("bytes=9-", Span(9, 10)),
        ("bytes=3-99", Span(3, 10)),
        (f"bytes=3-{_BIG}", Span(3, 10)),
        ("bytes=-1", Span(9, 10)),
        ("bytes=-10", Span(0, 10)),
        ("bytes=-99", Span(0, 10)),
        (f"bytes=-{_BIG}", Span(0, 10)),
        (" Bytes = 1 - 2 ", Span(1, 3)),
    ],
)
def test_one_range(header: str, wanted: Span) -> None:
    """First to last, open at the end, and from the end (RFC 9110, 14.1.2)."""
    assert parse_ranges(header, 10) == (wanted,)


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        ("bytes=1-2,4-5", [Span(1, 3), Span(4, 6)]),
        ("bytes=7-8,1-2", [Span(7, 9), Span(1, 3)]),
        ("bytes=0-3,2-5", [Span(0, 4), Span(2, 6)]),
        ("bytes=1-2,1-2", [Span(1, 3), Span(1, 3)]),
        ("bytes=1-2,3-4", [Span(1, 3), Span(3, 5)]),
        ("bytes=0-,-10", [Span(0, 10), Span(0, 10)]),
        ("bytes=0-0,-1", [Span(0, 1), Span(9, 10)]),
        (" Bytes = 1 - 2 ,\t4-5 ", [Span(1, 3), Span(4, 6)]),
        ("bytes=,1-2,, 4-5,", [Span(1, 3), Span(4, 6)]),
        ("bytes=1-2,10-20,4-5,-0", [Span(1, 3), Span(4, 6)]),
        (f"bytes=1-2,{_BIG}-", [Span(1, 3)]),
    ],
)
def test_several_ranges(header: str, wanted: list[Span]) -> None:
    """As they were asked for: in that order, never merged, without those that lie outside (RFC 9110, 14.2)."""
    assert parse_ranges(header, 10) == tuple(wanted)


@pytest.mark.parametrize(
    "header",
    [
        *(
            None,
            "",
            "bytes",
            "bytes=",
            "bytes=,",
            "bytes=-",
            "bytes=1-2,-",
            "bytes=1-2,4",
            "bytes=1-2;4-5",
            "bytes=a-b",
        ),
        *("items=0-1", "items=0-1,2-3", "items=" + "0-0," * 2000, "bytes=٣-", "bytes=10-12,x", "bytes=1-2,4-5 6-7"),
    ],
)
def test_27_ignored(header: str | None) -> None:
    """Row 27: a header that is no list of byte ranges means the whole."""
    assert parse_ranges(header, 10) == ()


@pytest.mark.parametrize(
    "header",
    [
        *("bytes=10-", "bytes=10-12", "bytes=-0", f"bytes={_BIG}-", f"bytes={_BIG}-{_BIG}", "bytes=10-,20-30,-0"),
        *("bytes=5-3", "bytes=500-0", "bytes=1-2,5-3", "bytes=5-3,1-2", f"bytes={_BIG}-3"),
    ],
)
def test_27_outside(header: str) -> None:
    """Row 27: if all lies outside, or one ends before it starts, nothing can be satisfied; the error knows the size."""
    with pytest.raises(RangeInvalid) as caught:
        parse_ranges(header, 10)
    assert caught.value.size == 10


def test_27_only_so_many() -> None:
    """Row 27: as many as podman sends are answered, and no more."""
    each = ",".join(f"{2 * number}-{2 * number}" for number in range(MOST_RANGES))
    assert len(parse_ranges(f"bytes={each}", 10_000)) == MOST_RANGES == 1024
    with pytest.raises(TooManyRanges):
        parse_ranges(f"bytes={each},5000-", 10_000)
    with pytest.raises(TooManyRanges):
        parse_ranges("bytes=0-0" + "," * MOST_RANGES, 10_000)


def test_27_overlaps_are_bounded() -> None:
    """Row 27: ranges that overlap are not merged, so what they add up to is bounded (CVE-2011-3192)."""
    assert len(parse_ranges("bytes=0-,0-", 1000)) == 2
    for header in ("bytes=0-,0-,0-0", "bytes=" + ",".join(f"{number}-" for number in range(10)), "bytes=0-,-1000,-1"):
        with pytest.raises(TooManyRanges):
            parse_ranges(header, 1000)


@pytest.mark.parametrize("header", ["bytes=0-", "bytes=0-0", "bytes=-5"])
def test_nothing_has_no_range(header: str) -> None:
    """Of no bytes no range can be had."""
    with pytest.raises(RangeInvalid):
        parse_ranges(header, 0)


@given(st.integers(0, 200), st.integers(0, 250), st.integers(0, 250))
def test_like_slicing(size: int, first: int, last: int) -> None:
    """A range is what slicing gives."""
    content = bytes(number % 256 for number in range(size))
    try:
        [span] = parse_ranges(f"bytes={first}-{last}", size)
    except RangeInvalid:
        assert first >= size or last < first
    else:
        assert last >= first
        assert content[span.start : span.stop] == content[first : last + 1]
        assert span.length == len(content[first : last + 1]) > 0


@given(st.text(max_size=30) | st.from_regex(r"bytes=(\d*-\d*,?)*", fullmatch=True), st.integers(0, 2**63))
def test_27_any_header(header: str, size: int) -> None:
    """Row 27: whatever comes: ignored, refused, or spans within the bytes."""
    try:
        spans = parse_ranges(header, size)
    except (RangeInvalid, TooManyRanges):
        return
    assert all(0 <= span.start < span.stop <= size for span in spans)
    assert sum(span.length for span in spans) <= 2 * size


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        ("bytes 0-0/1", (Span(0, 1), 1)),
        ("bytes 3-5/10", (Span(3, 6), 10)),
        ("bytes 3-5/*", (Span(3, 6), None)),
        (" BYTES  3-5/10 ", (Span(3, 6), 10)),
    ],
)
def test_content_range(header: str, wanted: tuple[Span, int | None]) -> None:
    """What part of what whole an answer is."""
    assert parse_content_range(header) == wanted


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "bytes */10",
        "bytes 5-3/10",
        "bytes 3-10/10",
        "bytes 3-5",
        "items 3-5/10",
        f"bytes 0-1/{_BIG}",
        "bytes=3-5/10",
    ],
)
def test_22_no_content_range(header: str | None) -> None:
    """Row 22: a part that contradicts itself is no part."""
    assert parse_content_range(header) is None
