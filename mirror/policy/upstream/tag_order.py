"""Whether a tag list is sorted, as far as it has been read.

By bytes, as `last` compares (distribution-spec, "Listing Tags"): tags are ASCII, so Python's order of strings is the
order of their bytes.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["ascending"]


def ascending(tags: Iterable[str], behind: str) -> list[str] | None:
    """The tags, if they ascend and begin behind `behind`; None if they do not.

    A tag that equals the one before it is left out: some registries begin a page with the last tag of the page before.
    """
    kept: list[str] = []
    for tag in tags:
        if tag < behind:
            return None
        if tag != behind:
            kept.append(tag)
            behind = tag
    return kept
