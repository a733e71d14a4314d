"""Dates as people write them."""

from __future__ import annotations

import pytest

from mirror.values.timestamps import format_moment, moment, parse_moment


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-01", 0),
        (" 2025-01-31 ", 1738281600),
        ("2025-01-31T12:30", 1738326600),
        ("2025-01-31 12:30:05", 1738326605),
        ("2025-01-31T12:30:05Z", 1738326605),
        ("2025-01-31T14:30:05+02:00", 1738326605),
        ("20250131", 1738281600),
    ],
)
def test_dates(text: str, seconds: float) -> None:
    """UTC unless another zone is said, and a day means its beginning."""
    assert parse_moment(text) == seconds


@pytest.mark.parametrize("text", ["", "yesterday", "2025-13-01", "2025-02-30", "31.01.2025", "12:30", "1738281600.5"])
def test_what_is_no_date(text: str) -> None:
    """The error shows what was written, and what to write."""
    with pytest.raises(ValueError, match=r"not a date: .* \(write 2025-01-31"):
        parse_moment(text)


@pytest.mark.parametrize("seconds", [0, 1738326605, 4102444800])
def test_there_and_back(seconds: float) -> None:
    """What is written can be read."""
    assert parse_moment(format_moment(seconds)) == seconds


def test_what_is_not_known() -> None:
    """For programs a time that is not known is none."""
    assert (moment(None), moment(0), moment(1738281600)) == (None, None, "2025-01-31T00:00:00Z")


@pytest.mark.parametrize("seconds", [1e30, -1e30, 1e300])
def test_beyond_the_calendar(seconds: float) -> None:
    """A wild clock's time is shown as a number."""
    assert float(format_moment(seconds)) == seconds
