"""Where the next page of a list is: the `Link` header (RFC 8288; distribution-spec, "Listing Tags")."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

__all__ = ["next_page", "next_query"]

#: Whatever comes, it is read in one go: nothing in it may stand where a `<` or a comma begins something new.
_NEXT: Final = re.compile(r"<([^<>]*+)>\s*+;(?:[^,<]*;)?\s*rel\s*=\s*\"?next\"?", re.IGNORECASE)
#: Characters of a line that are looked at: a page's address has some hundreds.
_LONGEST: Final = 16 * 1024
#: What may stand in a query (RFC 3986, 3.4), and what registries leave unescaped in it.
_QUERY: Final = re.compile(r"[!$-;=?-Z_a-z~@%|{}\[\]^`]{1,8192}")


def next_page(lines: Iterable[str]) -> str | None:
    """What the first `rel="next"` leads to, as it is written; None where there is none."""
    for line in lines:
        if found := _NEXT.search(line[:_LONGEST]):
            return found[1]
    return None


def next_query(lines: Iterable[str]) -> str | None:
    """The query of the next page, byte for byte; None if this page is the last one.

    Scheme, host and path of the link are not looked at: behind a proxy, registries write an inner host, another scheme,
    or leave out the path that they are served below. The next page is another query on the path of the first one.
    Raises `ValueError` for a link without a query, which could only be the first page again.
    """
    page = next_page(lines)
    if page is None:
        return None
    query = page.partition("#")[0].partition("?")[2]
    if not _QUERY.fullmatch(query):
        raise ValueError("a link to a next page without a query")
    return query
