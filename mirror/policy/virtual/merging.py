"""What the lists of several members become: one list, sorted, without repetitions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mirror.oci.manifest import Descriptor


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


def merge_referrers(lists: Iterable[Iterable[Descriptor]]) -> tuple[Descriptor, ...]:
    """All descriptors, sorted by digest; of several with the same digest, the first."""
    found: dict[object, Descriptor] = {}
    for each in lists:
        for descriptor in each:
            found.setdefault(descriptor.digest, descriptor)
    return tuple(sorted(found.values(), key=lambda descriptor: str(descriptor.digest)))
