"""Points in time as people write and read them: ISO 8601, in UTC unless a zone is given."""

from __future__ import annotations

from datetime import UTC, datetime


def parse_moment(text: str) -> float:
    """Parse `2025-01-31` (its beginning), `2025-01-31T12:30` or `2025-01-31 12:30:05+02:00` to epoch seconds.

    Raises `ValueError` that says what is wrong.
    """
    try:
        read = datetime.fromisoformat(text.strip())
        return (read if read.tzinfo else read.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError) as error:
        raise ValueError(f"not a date: {text[:80]!r} (write 2025-01-31 or 2025-01-31T12:30; UTC)") from error


def format_moment(seconds: float) -> str:
    """Format epoch seconds as `2025-01-31T12:30:05Z`, or as a number if they are beyond the calendar."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return f"{seconds:.0f}"


def moment(seconds: float | None) -> str | None:
    """Format epoch seconds for JSON, in commands and the admin API. None if the time is unknown (None or 0)."""
    return format_moment(seconds) if seconds else None
