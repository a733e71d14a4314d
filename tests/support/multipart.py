"""Bodies of several parts, read as clients read them: by the boundary alone, without the lengths."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.support.live_mirror import Got


@dataclass(frozen=True)
class Part:
    """`first` and `last` byte of a blob of `size` bytes, from the part's `Content-Range`, and the part's content."""

    first: int
    last: int
    size: int
    content: bytes


def parts_of(got: Got) -> list[Part]:
    """Each part of a whole answer (RFC 2046, 5.1.1; RFC 9110, 14.6)."""
    assert got.status == 206, got.status
    assert got.whole
    assert "Content-Range" not in got.headers, "that is for a single part"
    assert got.headers["Content-Length"] == str(len(got.body))
    kind = re.fullmatch(r"multipart/byteranges; boundary=([0-9A-Za-z]{1,70})", got.headers["Content-Type"])
    assert kind, got.headers["Content-Type"]
    before, *found, after = (b"\r\n" + got.body).split(f"\r\n--{kind[1]}".encode())
    assert before == b""
    assert after == b"--\r\n"
    return [_part(one) for one in found]


def _part(text: bytes) -> Part:
    start, gap, content = text.partition(b"\r\n\r\n")
    assert gap
    assert start.startswith(b"\r\n")
    fields = dict(line.split(": ") for line in start.decode().strip().split("\r\n"))
    assert fields.pop("Content-Type") == "application/octet-stream"
    # the expression of stargz and SOCI; they know no part without a size
    known = re.search(r"bytes ([0-9]+)-([0-9]+)/([0-9]+|\*)", fields.pop("Content-Range"))
    assert known
    assert not fields
    return Part(int(known[1]), int(known[2]), int(known[3]), content)
