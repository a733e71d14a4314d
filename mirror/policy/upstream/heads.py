"""What upstream's answer to HEAD of a manifest means, and when GET might give another result.

The mirror uses HEAD because it does not count as a pull. Many registries answer it wrongly: with 403 or 404 although
GET is answered with 200 (registry.centos.org), with 400 or 501, or without the headers that a descriptor needs. Clients
that pull directly continue with GET after any of these. So a failed HEAD alone is never taken as a refusal.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from mirror.errors import DigestInvalid
from mirror.oci.digest import Digest
from mirror.oci.manifest import ACCEPT, LARGEST, Descriptor
from mirror.oci.reference import Reference

_LENGTH: Final = re.compile(r"[0-9]{1,18}")

#: Statuses of HEAD that say nothing about GET. Not included: 401, which is answered by authenticating or refuses our
#: password; 408 and 429, which ask the client to wait; and 5xx other than 501 and 505, which may change soon.
WORTH_A_GET: Final = frozenset({*range(201, 500), 501, 505} - {401, 408, 429})


def is_worth_a_get(status: int | None) -> bool:
    """Whether GET may succeed although HEAD, after all retries, failed with this status (None: no answer at all)."""
    return status is not None and (status in WORTH_A_GET or status >= 500)


def read_head(headers: Mapping[str, str | None], reference: Reference) -> Descriptor | None:
    """The descriptor in the headers of a 200 to HEAD; None if a part is missing or not credible.

    `headers` has `Content-Type`, `Content-Length` and `Docker-Content-Digest`. If `reference` is a digest, it is the
    manifest's digest, whatever the header says (distribution-spec, "Pulling manifests").
    """
    media_type = (headers.get("Content-Type") or "").partition(";")[0].strip().lower()
    length = headers.get("Content-Length") or ""
    if media_type not in ACCEPT or not _LENGTH.fullmatch(length) or not 0 < int(length) <= LARGEST:
        return None
    if isinstance(reference, Digest):
        return Descriptor(media_type, reference, int(length))
    try:
        digest = Digest.parse(headers.get("Docker-Content-Digest") or "")
    except DigestInvalid:
        return None
    return Descriptor(media_type, digest, int(length))
