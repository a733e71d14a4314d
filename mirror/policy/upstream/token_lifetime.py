"""How long an issued token is used, and how long an issuer that failed is not asked again. All times in seconds."""

from __future__ import annotations

from typing import Final

_LIFETIME: Final = 60.0
_LONGEST_LIFETIME: Final = 31 * 24 * 3600.0
_FIRST_PAUSE: Final = 2.0
_LONGEST_PAUSE: Final = 60.0


def usable_seconds(expires_in: object) -> float:
    """For how long a token is used: `expires_in` less a margin. A missing or absurd `expires_in` counts as 60 s.

    The margin is a tenth of the lifetime, but at least 5 s and at most half. It allows for the issuer's clock and for
    the time that requests take.
    """
    lifetime = _LIFETIME
    if isinstance(expires_in, int | float) and not isinstance(expires_in, bool) and 0 < expires_in <= _LONGEST_LIFETIME:
        lifetime = float(expires_in)
    return lifetime - min(lifetime / 2, max(5.0, lifetime / 10))


def pause_after(failures: int) -> float:
    """How long an issuer that has failed this many times in a row (from 1) is not asked: 2 s, 4 s … up to a minute."""
    return min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(failures - 1, 10))
