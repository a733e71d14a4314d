"""Reads the manifest in an answer to GET, and finds the form of its bytes that has the digest.

by digest   the form that has the requested digest; if no form has it, the answer is another manifest
by tag      the bytes decide; `Docker-Content-Digest` only helps to choose the algorithm and the form
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Final

from mirror.errors import DigestInvalid, DigestMismatch, UpstreamInvalid
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest, ManifestMalformed, read_manifest
from mirror.oci.reference import Reference
from mirror.oci.signed import signed_payload
from mirror.upstream.http.download import Answer

#: A manifest of at most so many bytes is read on the event loop: that takes a millisecond or two.
_READ_AT_ONCE: Final = 64 * 1024


async def manifest_in(answer: Answer, reference: Reference, upstream: str) -> Manifest:
    """The manifest in an answer of this upstream. Raises `DigestMismatch`, `UpstreamInvalid`.

    A large manifest is hashed and parsed in a thread: thousands of descriptors would block the event loop.
    """
    media_type, digest = (answer.fields.get(name) for name in ("Content-Type", "Docker-Content-Digest"))
    read = partial(read_answer, (answer.content, answer.sent), media_type, digest, reference)
    try:
        manifest = read() if len(answer.content) <= _READ_AT_ONCE else await asyncio.to_thread(read)
    except ManifestMalformed as error:
        message = f"{upstream}: not a manifest: {error}"
        raise UpstreamInvalid(message, upstream=upstream, status=answer.status) from error
    if manifest is None:
        message = f"the manifest {reference} arrived with another digest"
        raise DigestMismatch(message, upstream=upstream, status=answer.status)
    return manifest


def read_answer(
    forms: Iterable[bytes], media_type: str | None, digest: str | None, reference: Reference
) -> Manifest | None:
    """The manifest; None if it was requested by digest and no form of it has that digest.

    `forms` are the bytes without and with their `Content-Encoding`, the likeliest first. `media_type` is the
    `Content-Type`, `digest` the `Docker-Content-Digest`. Raises `ManifestMalformed`.
    """
    wanted = reference if isinstance(reference, Digest) else _parse(digest)
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


def _parse(text: str | None) -> Digest | None:
    with suppress(DigestInvalid):
        return Digest.parse(text or "")
    return None
