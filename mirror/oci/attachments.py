"""Names by which signatures, attestations and SBOMs are attached to an image, besides the referrers API."""

from __future__ import annotations

import re
from typing import Final

from mirror.errors import DigestInvalid
from mirror.oci.digest import Digest

#: Build tools put attestations into the index itself; this annotation names the manifest that an attestation is about.
ATTESTED_DIGEST: Final = "vnd.docker.reference.digest"

#: Endings of the tags under which cosign stores signatures, attestations and SBOMs.
_SUFFIXES: Final = ("sig", "att", "sbom")
_LIST_TAG: Final = re.compile(r"(?:sha256|sha512)-[0-9a-f]{64}")
_TAG: Final = re.compile(rf"(sha256|sha512)-([0-9a-f]+)\.(?:{'|'.join(_SUFFIXES)})")


def referrers_tag(digest: Digest) -> str:
    """The tag of the index of referrers, in registries without the referrers API.

    The hex digits are truncated to fit the tag grammar (distribution-spec, "Referrers Tag Schema").
    """
    return f"{digest.algorithm}-{digest.hex[:64]}"


def signature_tag(digest: Digest) -> str:
    """The tag that cosign gives to the signatures of an image."""
    return f"{digest.algorithm}-{digest.hex}.sig"


def attachment_tags(digest: Digest) -> list[str]:
    """The tags that cosign gives to the signatures, attestations and SBOMs of an image."""
    return [f"{digest.algorithm}-{digest.hex}.{suffix}" for suffix in _SUFFIXES]


def tags_about(digest: Digest) -> list[str]:
    """All tags that are made from the digest of an image: its `referrers_tag` and its `attachment_tags`."""
    return [referrers_tag(digest), *attachment_tags(digest)]


def is_attached(tag: str) -> bool:
    """Whether a tag is made from the digest of the image that its content belongs to, by cosign or as a
    `referrers_tag`.
    """
    return _TAG.fullmatch(tag) is not None or _LIST_TAG.fullmatch(tag) is not None


def image_of_tag(tag: str) -> Digest | None:
    """The image whose `attachment_tags` include this tag; None for any other tag."""
    if (match := _TAG.fullmatch(tag)) is None:
        return None
    try:
        return Digest.parse(f"{match[1]}:{match[2]}")
    except DigestInvalid:
        return None


def is_attached_to(tag: str, digest: Digest) -> bool:
    """Whether the tag is one of the names above, of this image."""
    return tag == referrers_tag(digest) or image_of_tag(tag) == digest
