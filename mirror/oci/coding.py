"""Content codings (RFC 9110, 8.4.1) of small answers that come encoded although identity was asked for."""

from __future__ import annotations

import zlib

__all__ = ["decode"]

_WINDOWS = {"gzip": 31, "x-gzip": 31, "deflate": 47}


def decode(content: bytes, coding: str | None, limit: int) -> bytes:
    """What `content` says once its coding is undone, at most `limit` bytes of it.

    `content` itself if there is no coding, none that we know, or if it is not encoded in it after all: some servers
    name the coding of what they have stored (Apache's `x-gzip` for every gzip file).
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
