"""How far an upload session is, by the `Range` of an answer (distribution-spec, "Pushing a blob in chunks")."""

from __future__ import annotations

import re
from typing import Final

_RANGE: Final = re.compile(r"(?:bytes=)?0-([0-9]{1,18})")


def received(text: str | None) -> int | None:
    """How many bytes the session has; None if the answer does not say it.

    The end of the range is inclusive, so `0-0` is one byte. distribution sends it for none as well, so the caller must
    not rely on a result of 1.
    """
    match = _RANGE.fullmatch((text or "").strip())
    return int(match[1]) + 1 if match else None
