"""Content codings (RFC 9110, 8.4.1) of small answers that are encoded although identity was requested."""

from __future__ import annotations

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
