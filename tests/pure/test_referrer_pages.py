"""Pages of referrers: what fits in one, and where the next begins."""

from __future__ import annotations

import json
from collections.abc import Iterator

from mirror.oci.digest import Digest
from mirror.oci.manifest import LARGEST, OCI_MANIFEST, Descriptor
from mirror.oci.referrer_pages import MOST, first_page, page_of

ALL = sorted(
    (Descriptor(OCI_MANIFEST, Digest.of(b"%d" % number), 7, annotations={"a": "\u202e" * 50}) for number in range(9)),
    key=lambda each: each.digest,
)
#: Bytes of each in a list.
SIZE = len(json.dumps(ALL[0].to_json())) + 2


def test_a_page_is_no_larger_than_it_may_be() -> None:
    """Its size is that of the JSON that is sent; the largest one is as large as a manifest."""
    page = first_page(ALL, 3 * SIZE)
    assert (page.items, page.size, page.more) == (tuple(ALL[:3]), 3 * SIZE, True)
    assert len(json.dumps([each.to_json() for each in page.items])) == 3 * SIZE
    assert (first_page(ALL).items, first_page(ALL).more) == (tuple(ALL), False)
    [large] = first_page([Descriptor(OCI_MANIFEST, ALL[0].digest, 7, annotations={"a": "x" * LARGEST})]).items
    assert len(large.annotations["a"]) == LARGEST
    assert first_page(()).items == ()


def test_no_more_are_read_than_a_page_needs() -> None:
    """One more tells whether there is one."""
    read = 0

    def each() -> Iterator[Descriptor]:
        nonlocal read
        while True:
            read += 1
            yield ALL[0]

    assert len(first_page(each(), 5 * SIZE).items) == 5
    assert read == 6
    read = 0
    assert len(first_page(each(), 1 << 60).items) == MOST
    assert read == MOST + 1


def test_pages_of_a_whole_list() -> None:
    """One page is in the order of the list, several in that of the digests; together they have each once."""
    backwards = ALL[::-1]
    assert page_of(backwards).items == tuple(backwards)
    found: list[Descriptor] = []
    after = None
    while True:
        page = page_of(backwards, after, 4 * SIZE)
        found += page.items
        if not page.more:
            break
        after = page.items[-1].digest
    assert found == ALL
    assert page_of(backwards, ALL[-1].digest).items == ()
