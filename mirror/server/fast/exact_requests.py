"""Which bytes are exactly one request, and what such a request may have in its head to be answered from the table.

A request is known by its bytes, so whatever its head says is part of the key. The list of headers keeps out of the
table what is answered by more than the table knows (credentials, conditions, ranges, the address that a proxy gives),
and what differs in each request (traces).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

#: The end of a head (RFC 9112, 2.1).
END: Final = b"\r\n\r\n"
#: Bytes of a head that may be in the table: clients send a few hundred.
LONGEST: Final = 2048
_METHODS: Final = (b"GET /v2/", b"HEAD /v2/")
#: Headers that a request may have once.
_ONCE: Final = frozenset(
    {
        b"host",
        b"user-agent",
        b"accept-encoding",
        b"accept-language",
        b"connection",
        # sent by podman and CRI-O
        b"docker-distribution-api-version",
    }
)
#: Docker sends one for each media type.
_REPEATED: Final = b"accept"


def is_whole(data: bytes) -> bool:
    """True if this may be exactly one request without a body: one head, and nothing after it."""
    return len(data) <= LONGEST and data.find(END) == len(data) - 4 and data.startswith(_METHODS)


def has_usual_headers(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """True if nothing in the head keeps the request out of the table."""
    seen = set()
    for name, value in headers:
        key = name.lower()
        if key == _REPEATED:
            continue
        if key not in _ONCE or key in seen or (key == b"connection" and value.lower() != b"keep-alive"):
            return False
        seen.add(key)
    return b"host" in seen
