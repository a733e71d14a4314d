"""Decodes small answers that are encoded although identity was requested (RFC 9110, 8.4.1), and base64url."""

from __future__ import annotations

import base64
import zlib

_WINDOWS = {"gzip": 31, "x-gzip": 31, "deflate": 47}


def decode(content: bytes, coding: str | None, limit: int) -> bytes:
    """The decoded content, at most `limit` bytes of it.

    Returns `content` unchanged if there is no coding, if the coding is unknown, or if the content is not encoded in
    that coding: some servers state the format of the stored file instead (Apache's `x-gzip` for every gzip file).
    """
    window = _WINDOWS.get((coding or "identity").strip().lower())
    if window is None:
        return content
    undoing = zlib.decompressobj(window)
    try:
        decoded = undoing.decompress(content, limit)
    except zlib.error:
        return content
    return decoded if undoing.eof or len(decoded) == limit else content


def decode_base64url(text: str) -> bytes:
    """Decode base64url without padding (RFC 7515, 2). Raises `ValueError`."""
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
