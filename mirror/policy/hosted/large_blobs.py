"""Which blobs are large: they are uploaded to a bucket in parts, which takes long, and only a few of them at once."""

from __future__ import annotations

from typing import Final

#: Bytes of the largest blob that goes to a bucket in one request.
_IN_ONE_REQUEST: Final = 8 << 20


def is_large(size: int) -> bool:
    """True for a blob of so many bytes that small ones must not wait for it."""
    return size > _IN_ONE_REQUEST
