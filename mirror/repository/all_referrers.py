"""All referrers of a manifest, for whoever looks at each of them."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor
from mirror.repository.protocol import Readable


async def all_referrers(repository: Readable, digest: Digest) -> AsyncGenerator[Descriptor, None]:
    """Each referrer, page by page. Raises like `Readable.referrers`."""
    after: Digest | None = None
    while True:
        page = await repository.referrers(digest, after)
        for descriptor in page.items:
            yield descriptor
        if not page.more or not page.items:
            return
        after = page.items[-1].digest
