"""How one replica asks another for a cached blob, and what it is told.

    GET  /peer/v1/blob/<registry>/<repository>/<digest>     Range: bytes=N-, if from an offset on
         Content-Range  bytes N-M/*, if no more than up to M, inclusive, is wanted: a replica of a version that does not
                        know this sends the rest of the blob, and the other one leaves when it has what it wanted. (It
                        would refuse a Range with an end, and headers that it does not know are not signed.)
         Mirror-Part    "yes": a small part, which the other replica sends its own client unverified; it may come out of
                        turn, and unverified. Not signed, as it allows nobody anything
         Mirror-Hops    how many replicas wait for the answer
         Mirror-Size    the size of the whole blob in bytes, if a manifest says it: the head of the answer then comes at
                        once, and says nothing
      <- Mirror-Granted "yes": the repository may have the blob, as its upstream has said; never in a head of that kind
    HEAD the same
      <- Mirror-Offset  how many bytes of the blob would be sent now

A member that may not give the blob, or whose upstream does not have it, answers 404; one that would wait for a replica
that waits for it, 508 (RFC 5842, 7.2).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from mirror.errors import DigestInvalid
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo, read_repo
from mirror.policy.cluster.ownership import MOST_HOPS

PATH: Final = "blob/"
HOPS: Final = "Mirror-Hops"
SIZE: Final = "Mirror-Size"
GRANTED: Final = "Mirror-Granted"
OFFSET: Final = "Mirror-Offset"
UP_TO: Final = "Content-Range"
PART: Final = "Mirror-Part"

_NUMBER: Final = re.compile(r"[0-9]{1,18}")
_RANGE: Final = re.compile(r"bytes=([0-9]{1,18})-")
_UP_TO: Final = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/\*")


@dataclass(frozen=True, slots=True)
class BlobRequest:
    """A request for a blob from the offset `start` up to, but not including, `stop` (None: to its end). `size` is that
    of the whole blob in bytes, None if the asking replica does not know it. `is_part`: it may come out of turn.
    """

    repo: Repo
    digest: Digest
    start: int
    size: int | None
    hops: int
    stop: int | None = None
    is_part: bool = False


def range_headers(start: int, stop: int | None) -> dict[str, str]:
    """The headers that ask for a part of a blob, from `start` up to, but not including, `stop` (None: to its end)."""
    if stop is None:
        return {"Range": f"bytes={start}-"} if start else {}
    return {"Range": f"bytes={start}-", UP_TO: f"bytes {start}-{stop - 1}/*"}


def blob_target(repo: Repo, digest: Digest) -> str:
    """The path of a blob at the internal listener."""
    return f"/peer/v1/{PATH}{repo.registry}/{repo.name}/{digest}"


def parse_blob_request(rest: str, headers: Mapping[str, str]) -> BlobRequest:
    """Reads a request: `rest` is the path after `PATH`. Raises `ValueError` with what is wrong."""
    name, _, digest_text = rest.rpartition("/")
    repo = read_repo(name)
    if repo is None:
        raise ValueError("not the path of a blob: registry/repository/digest")
    try:
        digest = Digest.parse(digest_text)
    except DigestInvalid as error:
        raise ValueError(str(error)) from error
    hops, size = _number(headers, HOPS), _number(headers, SIZE)
    if hops is None or hops < 1:
        raise ValueError(f"{HOPS} is missing")
    start = 0
    if (text := headers.get("Range")) is not None:
        found = _RANGE.fullmatch(text)
        if found is None:
            raise ValueError("Range is not bytes=N-")
        start = int(found[1])
    if size is not None and start >= max(size, 1):
        raise ValueError("Range begins after the end of the blob")
    stop = None
    if (text := headers.get(UP_TO)) is not None:
        found = _UP_TO.fullmatch(text)
        if found is None or int(found[1]) != start or int(found[2]) < start:
            raise ValueError(f"{UP_TO} is not bytes N-M/*, with the N of Range")
        stop = int(found[2]) + 1
    is_part = headers.get(PART) == "yes" and stop is not None and size is not None and stop <= size
    return BlobRequest(repo, digest, start, size, hops, stop, is_part)


def is_loop(request: BlobRequest) -> bool:
    """True if too many replicas wait for the answer already."""
    return request.hops > MOST_HOPS


def _number(headers: Mapping[str, str], name: str) -> int | None:
    text = headers.get(name)
    if text is None:
        return None
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"{name} is not a number")
    return int(text)
