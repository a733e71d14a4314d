"""Where the next page is: the `Link` header (RFC 8288; distribution-spec, "Listing Tags")."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

__all__ = ["next_page"]

#: Whatever comes, it is read in one go: nothing in it may stand where a `<` or a comma begins something new.
_NEXT: Final = re.compile(r"<([^<>]*+)>\s*+;(?:[^,<]*;)?\s*rel\s*=\s*\"?next\"?", re.IGNORECASE)
#: Characters of a line that are looked at: a page's address has some hundreds.
_LONGEST: Final = 16 * 1024


def next_page(lines: Iterable[str]) -> str | None:
    """What the first `rel="next"` leads to, as it is written; None where there is none."""
    for line in lines:
        if found := _NEXT.search(line[:_LONGEST]):
            return found[1]
    return None
