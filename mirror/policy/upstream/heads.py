"""What upstream's answer to HEAD of a manifest means, where GET might say something else.

HEAD is asked because it costs nothing where pulls are counted. Many registries answer it wrongly: with 403 or 404 where
GET is 200 (registry.centos.org), with 400 or 501, or without what a descriptor needs. Clients that pull directly go on
with GET after any of these, so HEAD alone refuses nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from mirror.errors import DigestInvalid
from mirror.oci.digest import Digest
from mirror.oci.manifest import ACCEPT, LARGEST, Descriptor
from mirror.oci.reference import Reference

__all__ = ["TO_BE_ASKED_BY_GET", "is_worth_a_get", "read_head"]

_LENGTH: Final = re.compile(r"[0-9]{1,18}")

#: Statuses of HEAD that say nothing about GET. Not among them: 401, which the challenge settles, or which refuses our
#: password; 408 and 429, which ask us to wait; 5xx other than 501 and 505, which may be different soon.
TO_BE_ASKED_BY_GET: Final = frozenset({*range(201, 500), 501, 505} - {401, 408, 429})


def is_worth_a_get(status: int | None) -> bool:
    """Whether HEAD that failed with this status after further tries may still be 200 by GET. None: no answer at all."""
    return status is not None and (status in TO_BE_ASKED_BY_GET or status >= 500)


def read_head(headers: Mapping[str, str | None], reference: Reference) -> Descriptor | None:
    """What the headers of a 200 to HEAD describe; None where they do not say all of it, or not credibly.

    `headers` has `Content-Type`, `Content-Length` and `Docker-Content-Digest`. Asked for by digest, the manifest has
    that digest whatever the header says (distribution-spec, "Pulling manifests").
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
