"""Tags that look like a version. By convention, publishers do not move such tags."""

from __future__ import annotations

import re
from typing import Final

#: At least two numbers (`1.2`, `v3.12.1-slim`) or a date (`20240501`, `2024-05-01`), with an optional prefix such as
#: `v` or `release-`. One number alone (`3`, `v1`) stands for a series of releases, so such a tag moves.
_VERSION: Final = re.compile(
    r"(?:v|r|rel(?:ease)?[-_.]|version[-_.])?"
    r"(?:\d+(?:\.\d+)+|(?:19|20)\d\d[-_.]?(?:0[1-9]|1[0-2])[-_.]?(?:0[1-9]|[12]\d|3[01])(?!\d))"
    r"(?P<rest>.*)",
    re.IGNORECASE,
)
#: Words after the version that mark a tag as moving.
_MOVING: Final = frozenset(
    {
        "latest",
        "stable",
        "main",
        "master",
        "trunk",
        "edge",
        "nightly",
        "daily",
        "dev",
        "devel",
        "canary",
        "snapshot",
        "x",
    }
)


def looks_like_version(tag: str) -> bool:
    """Whether a tag looks like a version that does not move.

    True for `1.2.3`, `v1.2`, `3.12.1-slim`, `2024.05.01`. False for `latest`, `3`, `1.2.x`, `1.2-nightly`,
    `stable-1.2`.
    """
    match = _VERSION.fullmatch(tag)
    return match is not None and not _MOVING & {word.lower() for word in re.split(r"[-_.+]", match["rest"])}
