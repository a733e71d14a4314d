"""Whether a tag list is sorted, as far as it has been read.

The order is that of bytes, as `last` compares (distribution-spec, "Listing Tags"). Tags are ASCII, so Python's order of
strings is the same.
"""

from __future__ import annotations

from collections.abc import Iterable


def ascending(tags: Iterable[str], behind: str) -> list[str] | None:
    """The tags, if they are sorted and none sorts before `behind`; otherwise None.

    A tag that equals the one before it, or `behind`, is left out: some registries begin a page with the last tag of the
    page before.
    """
    sorted_tags: list[str] = []
    for tag in tags:
        if tag < behind:
            return None
        if tag != behind:
            sorted_tags.append(tag)
            behind = tag
    return sorted_tags
