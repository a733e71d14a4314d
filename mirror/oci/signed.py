"""Signed manifests of schema 1. Their digest is the digest of the payload, not of the bytes that are transferred.

Such a manifest is JSON in the "pretty" form of a JSON Web Signature: the payload with an additional field `signatures`,
inserted before its end. Each signature's `protected` header says how to restore the payload: it is the first
`formatLength` bytes, followed by `formatTail` (Docker image manifest v2, schema 1, "Signed Manifests").
"""

from __future__ import annotations

from typing import Any

from mirror.oci.coding import decode_base64url
from mirror.oci.strict_json import read_json


def signed_payload(content: bytes) -> bytes | None:
    """The payload of a signed manifest of schema 1; None if `content` is not such a manifest.

    Also None if the content has fields outside the payload other than the signatures, because the digest does not cover
    them. Signatures are not verified: a digest identifies the bytes, not the signer.
    """
    if b'"signatures"' not in content:
        return None
    try:
        body = read_json(content)
        signatures = body.pop("signatures")
        formats = {_format(signature["protected"]) for signature in signatures}
        if body.get("schemaVersion") != 1 or len(formats) != 1:
            return None
        [(length, tail)] = formats
        payload = content[:length] + tail
        return payload if 0 < length < len(content) and read_json(payload) == body else None
    except (ValueError, LookupError, TypeError, AttributeError):
        return None


def _format(protected: str) -> tuple[int, bytes]:
    header: dict[str, Any] = read_json(decode_base64url(protected))
    return int(header["formatLength"]), decode_base64url(header["formatTail"])
