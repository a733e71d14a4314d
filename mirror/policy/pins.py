"""Which images the configuration pins, and until when a pin is in force. Pure.

A rule names images by a pattern for the repository, as in routes, and a pattern for the tag after the last colon:

    docker.io/library/*:3.1*     registry.k8s.io/**:v1.29.?     ghcr.io/owner/app:*
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from mirror.oci.reference import Repo
from mirror.policy.routing import compile_pattern
from mirror.values.durations import parse_duration

#: The most characters of the reason that is given with a pin.
LONGEST_REASON: Final = 1000


@dataclass(frozen=True, slots=True)
class PinRule:
    """Images that must stay. `match` is `registry/name:tag`, with wildcards as in routes. Raises `ValueError`."""

    match: str
    reason: str = ""
    _repository: re.Pattern[str] = field(init=False, repr=False, compare=False)
    _tag: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        head, slash, last = self.match.rpartition("/")
        name, colon, tag = last.partition(":")
        if not head or not slash or not name or not colon or not tag:
            raise ValueError(
                f"not registry/name:tag pattern: {self.match[:200]!r} (write docker.io/library/app:* for every tag)"
            )
        object.__setattr__(self, "_repository", compile_pattern(f"{head}/{name}"))
        object.__setattr__(self, "_tag", compile_pattern(tag))

    def fits(self, repo: Repo, tag: str) -> bool:
        """Whether this image must stay."""
        return self._tag.fullmatch(tag) is not None and self._repository.fullmatch(str(repo)) is not None


def rule_for(rules: Iterable[PinRule], repo: Repo, tag: str) -> PinRule | None:
    """The first rule that matches this image; None if there is none."""
    return next((rule for rule in rules if rule.fits(repo, tag)), None)


def parse_until(text: str, now: float) -> float:
    """Parse the end of a pin and return it in epoch seconds. Raises `ValueError`, also for a time that is past.

    `text` is a date (`2026-03-01`: its beginning in UTC), a time (`2026-03-01T12:00+01:00`; UTC if it has no zone) or a
    duration from now (`30d`).
    """
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        try:
            until = now + parse_duration(text)
        except ValueError as error:
            raise ValueError(f"not a date, time or duration: {text[:40]!r} (write 2026-03-01 or 30d)") from error
    else:
        until = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if until <= now:
        raise ValueError(f"in the past: {text[:40]!r}")
    return until
