"""Durations as people write them in a configuration."""

from __future__ import annotations

import re
from typing import Final

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)")


def parse_duration(text: str | float) -> float:
    """Parse `90` (seconds), `"90s"`, `"1h30m"` or `"7d"` and return seconds.

    Raises `ValueError` that says what is wrong.
    """
    if isinstance(text, int | float) and not isinstance(text, bool):
        seconds = float(text)
    else:
        plain = str(text).strip().lower()
        parts = _PART.findall(plain)
        if not parts or "".join(f"{number}{unit}" for number, unit in parts) != plain.replace(" ", ""):
            raise ValueError(f"not a duration: {text!r} (write 30s, 10m, 6h, 7d)")
        seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if not 0 <= seconds < 1e9:
        raise ValueError(f"a duration lies between 0 and 30 years: {text!r}")
    return seconds


def format_duration(seconds: float) -> str:
    """Format seconds as `5m30s` or `7d`, with at most two units, rounded down."""
    rest = int(seconds)
    parts: list[str] = []
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, length)
        if count or parts:
            parts.append(f"{count}{unit}" if count else "")
        if len(parts) == 2:
            break
    return "".join(parts) or "0s"
