"""Times as people write them."""

from __future__ import annotations

from typing import Any

import pytest

from mirror.values.durations import format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (90, 90),
        (0, 0),
        (1.5, 1.5),
        ("0s", 0),
        ("90s", 90),
        ("250ms", 0.25),
        ("1h30m", 5400),
        ("1h 30m", 5400),
        (" 10 m ", 600),
        ("1.5h", 5400),
        ("7d", 604800),
        ("2w", 1209600),
        ("5M", 300),
    ],
)
def test_durations(text: str | float, seconds: float) -> None:
    """Numbers are seconds; units may be combined."""
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    ["", "soon", "10", "10 x", "-5s", "s", "1h30", "1h-30m", "1,5h", "infs", "nan", True, -1, 1e12, "99999999w", None],
)
def test_no_durations(text: Any) -> None:
    """What is none is refused with an example of what would be; a number in quotes lacks its unit."""
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.9, "0s"), (59, "59s"), (300, "5m"), (330, "5m30s"), (3600, "1h"), (3605, "1h"), (90061, "1d1h")],
)
def test_written_by_two_units(seconds: float, text: str) -> None:
    """The two largest units, rounded down."""
    assert format_duration(seconds) == text
