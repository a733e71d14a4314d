"""The link to the next page of a list: the `Link` header (RFC 8288; distribution-spec, "Listing Tags")."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

#: Matches in linear time, whatever the header contains: no part of it can match a `<`, or a comma that begins the next
#: link.
_NEXT: Final = re.compile(r"<([^<>]*+)>\s*+;(?:[^,<]*;)?\s*rel\s*=\s*\"?next\"?", re.IGNORECASE)
#: Only this many characters of a line are read. Links have some hundreds.
_LONGEST: Final = 16 * 1024
#: Characters allowed in a query (RFC 3986, 3.4), and those that registries do not escape in it.
_QUERY: Final = re.compile(r"[!$-;=?-Z_a-z~@%|{}\[\]^`]{1,8192}")


def next_page(lines: Iterable[str]) -> str | None:
    """The target of the first link with `rel="next"`, as written; None if there is none."""
    for line in lines:
        if match := _NEXT.search(line[:_LONGEST]):
            return match[1]
    return None


def next_query(lines: Iterable[str]) -> str | None:
    """The query of the next page, byte for byte; None if this page is the last one.

    Scheme, host and path of the link are ignored: registries behind a proxy write an internal host or another scheme,
    or omit the path prefix below which they are served. The next page has the path of the first one and another query.
    Raises `ValueError` if the link has no query, because it would lead to the first page again.
    """
    page = next_page(lines)
    if page is None:
        return None
    query = page.partition("#")[0].partition("?")[2]
    if not _QUERY.fullmatch(query):
        raise ValueError("a link to a next page without a query")
    return query
