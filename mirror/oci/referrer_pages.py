"""Pages of referrers. Clients read no list that is larger than a manifest may be (distribution-spec, "Listing
Referrers"). A subject may have any number of referrers, and each may bring as many annotations as fit in a manifest, so
no more is read than a page needs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Final

from mirror.oci.digest import Digest
from mirror.oci.manifest import LARGEST, Descriptor

#: Bytes of the descriptors in a page; the list around them takes a few more.
MOST_BYTES: Final = LARGEST - 256
#: Descriptors in a page.
MOST: Final = 10_000
#: Bytes between two descriptors: `, `.
_BETWEEN: Final = 2


@dataclass(frozen=True, slots=True)
class ReferrersPage:
    """Descriptors of referrers, and the bytes that they take as JSON. `more`: others follow the last one."""

    items: tuple[Descriptor, ...] = ()
    size: int = 0
    more: bool = False


def first_page(descriptors: Iterable[Descriptor], most_bytes: int = MOST_BYTES) -> ReferrersPage:
    """As many of these as fit in a page, and at least one if there is one. No more of them are read, except the next
    one.
    """
    page: list[Descriptor] = []
    size = 0
    for descriptor in descriptors:
        needed = len(json.dumps(descriptor.to_json())) + _BETWEEN
        if page and (size + needed > most_bytes or len(page) >= MOST):
            return ReferrersPage(tuple(page), size, more=True)
        page.append(descriptor)
        size += needed
    return ReferrersPage(tuple(page), size)


def page_of(
    descriptors: Sequence[Descriptor], after: Digest | None = None, most_bytes: int = MOST_BYTES
) -> ReferrersPage:
    """The page of a whole list after this digest. A list that fits in one page stays in its order; pages are in the
    order of the digests.
    """
    if after is None and not (whole := first_page(descriptors, most_bytes)).more:
        return whole
    following = (each for each in descriptors if after is None or each.digest > after)
    return first_page(sorted(following, key=attrgetter("digest")), most_bytes)
