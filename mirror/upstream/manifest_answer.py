"""Reads the manifest in an answer to GET, and finds the form of its bytes that has the digest.

by digest   the form that has the requested digest; if no form has it, the answer is another manifest
by tag      the bytes decide; `Docker-Content-Digest` only helps to choose the algorithm and the form
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace

from mirror.errors import DigestInvalid
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest, read_manifest
from mirror.oci.reference import Reference
from mirror.oci.signed import signed_payload


def read_answer(
    forms: Iterable[bytes], media_type: str | None, said: str | None, reference: Reference
) -> Manifest | None:
    """The manifest; None if it was requested by digest and no form of it has that digest.

    `forms` are the bytes without and with their `Content-Encoding`, the likeliest first. `media_type` is the
    `Content-Type`, `said` the `Docker-Content-Digest`. Raises `ManifestMalformed`.
    """
    wanted = reference if isinstance(reference, Digest) else _parse(said)
    likeliest: bytes | None = None
    for form in forms:
        likeliest = form if likeliest is None else likeliest
        if wanted is not None and wanted.matches(form):
            return read_manifest(form, media_type, algorithm=wanted.algorithm)
        payload = signed_payload(form)
        if wanted is not None and payload is not None and wanted.matches(payload):
            return replace(read_manifest(form, media_type), digest=wanted, signed=True)
    if likeliest is None or isinstance(reference, Digest):
        return None
    manifest, payload = read_manifest(likeliest, media_type), signed_payload(likeliest)
    return manifest if payload is None else replace(manifest, digest=Digest.of(payload), signed=True)


def _parse(said: str | None) -> Digest | None:
    with suppress(DigestInvalid):
        return Digest.parse(said or "")
    return None
