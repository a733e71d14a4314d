"""What the lists of several members become: one list, sorted, without repetitions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor
from mirror.oci.referrer_pages import ReferrersPage, first_page


@dataclass(frozen=True, slots=True)
class TagPart:
    """Sorted tags of one member after some tag; `more`: further tags follow the last one."""

    tags: Sequence[str]
    more: bool


def merge_tags(parts: Sequence[TagPart], count: int) -> TagPart:
    """The first `count` tags of all parts. It ends where one part ends that has more: what follows there is unknown."""
    ends = [part.tags[-1] if part.tags else "" for part in parts if part.more]
    known = min(ends) if ends else None
    tags = sorted({tag for part in parts for tag in part.tags if known is None or tag <= known})
    return TagPart(tuple(tags[:count]), bool(ends) or len(tags) > count)


@dataclass(frozen=True, slots=True)
class ReferrersPart:
    """Referrers of one member after some digest; `more`: others follow the last one."""

    items: Sequence[Descriptor]
    more: bool = False


def merge_referrers(parts: Sequence[ReferrersPart]) -> ReferrersPage:
    """A page of all descriptors, sorted by digest; of several with the same digest, the first. It ends where one part
    ends that has more: what follows there is unknown.
    """
    ends = [part.items[-1].digest for part in parts if part.more and part.items]
    known = min(ends) if ends else None
    found: dict[Digest, Descriptor] = {}
    for part in parts:
        for descriptor in part.items:
            found.setdefault(descriptor.digest, descriptor)
    page = first_page(found[digest] for digest in sorted(found) if known is None or digest <= known)
    return replace(page, more=page.more or known is not None)
