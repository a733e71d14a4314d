"""One request to the mirror on a connection of its own, each byte of the answer compared with what it must be.

connecting ─┬─> refused
            └─> head ─┬─> body ─┬─> complete   as many bytes as were promised
                      │         ├─> broken     the connection ended before that, or nothing came for long
                      │         └─> left       we hung up, as planned
                      └─> broken
"""

from __future__ import annotations

import asyncio
import hashlib
import mmap
import socket
import time
from dataclasses import asdict, dataclass
from typing import Any, Final

from bench.soaking.library import MANIFEST

_PIECE: Final = 128 << 10
#: Seconds without a byte after which a client gives up: containerd has no limit here, its users have.
_SILENCE: Final = 60.0
_MOST_KEPT: Final = 64 << 10


@dataclass(slots=True)
class Answer:
    """What came. Bytes are counted from `start` of the content; `wrong_at` is the first wrong one's offset in it."""

    kind: str
    method: str
    path: str
    digest: str | None
    asked: str | None
    at: float
    outcome: str = "refused"
    status: int = 0
    start: int = 0
    promised: int | None = None
    received: int = 0
    #: Bytes of the whole, as the registry has it.
    size: int | None = None
    wrong_at: int | None = None
    #: Of a whole body that came complete.
    sha256: str | None = None
    seconds: float = 0.0
    retry_after: float | None = None
    request: str | None = None
    reason: str | None = None

    @property
    def good(self) -> bool:
        """A complete answer with content."""
        return self.outcome == "complete" and self.status in (200, 206)

    @property
    def problem(self) -> str:
        """What a client would complain of."""
        if self.outcome == "complete":
            return f"{self.method} {self.kind}: status {self.status} ({self.reason or 'no reason'})"
        return f"{self.method} {self.kind}: {self.outcome} after {self.received} of {self.promised} ({self.reason})"

    def to_json(self) -> dict[str, Any]:
        """For the history."""
        return asdict(self)


async def ask(
    port: int,
    kind: str,
    path: str,
    content: bytes | mmap.mmap | None,
    *,
    digest: str | None = None,
    method: str = "GET",
    span: tuple[int, int | None] | None = None,
    rate: int | None = None,
    leave_after: int | None = None,
    began: float = 0.0,
) -> Answer:
    """One exchange; never raises for what the other side does.

    `span` is the first and the last byte wanted (None: to the end), `rate` bytes a second that are taken at most,
    `leave_after` the bytes after which the client hangs up, `began` the second from which `at` counts.
    """
    asked = None if span is None else f"bytes={span[0]}-{'' if span[1] is None else span[1]}"
    answer = Answer(kind, method, path, digest, asked, round(time.monotonic() - began, 3))
    answer.size = None if content is None else len(content)
    began_at = time.monotonic()
    writer: asyncio.StreamWriter | None = None
    try:
        reader, writer = await _connect(port, slow=rate is not None)
        answer.outcome = "broken"
        lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", f"Accept: {MANIFEST}, */*", "User-Agent: soak"]
        lines += [f"Range: {asked}"] if asked else []
        writer.write("\r\n".join([*lines, "", ""]).encode())
        async with asyncio.timeout(_SILENCE):
            head = await reader.readuntil(b"\r\n\r\n")
        _read_head(answer, head)
        if method == "HEAD":
            answer.outcome = "complete"
        elif answer.status in (200, 206):
            await _body(answer, reader, content, rate, leave_after)
        else:
            async with asyncio.timeout(_SILENCE):
                text = await reader.readexactly(min(answer.promised or 0, _MOST_KEPT))
            answer.received = len(text)
            answer.outcome, answer.reason = "complete", text[:500].decode(errors="replace")
    except TimeoutError:
        answer.reason = f"nothing for {_SILENCE:g} s"
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        answer.reason = type(error).__name__
    finally:
        if writer is not None:
            # at once: what is still on its way is of no interest
            writer.transport.abort()
    answer.seconds = round(time.monotonic() - began_at, 4)
    return answer


async def _connect(port: int, *, slow: bool) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    made = socket.socket()
    made.setblocking(False)
    try:
        if slow:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 << 10)
        async with asyncio.timeout(_SILENCE):
            await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", port))
        return await asyncio.open_connection(sock=made, limit=16 << 10 if slow else _PIECE)
    except BaseException:
        made.close()
        raise


def _read_head(answer: Answer, head: bytes) -> None:
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    answer.status = int(first.split()[1])
    answer.request = fields.get("x-request-id")
    if "content-length" in fields:
        answer.promised = int(fields["content-length"])
    if fields.get("retry-after", "").isdigit():
        answer.retry_after = float(fields["retry-after"])
    if answer.status == 206:
        part, _, whole = fields["content-range"].removeprefix("bytes ").partition("/")
        answer.start = int(part.partition("-")[0])
        if answer.size is not None and int(whole) != answer.size:
            answer.wrong_at = answer.start
    if answer.digest is None and "docker-content-digest" in fields:
        answer.digest = fields["docker-content-digest"]


async def _body(
    answer: Answer,
    reader: asyncio.StreamReader,
    content: bytes | mmap.mmap | None,
    rate: int | None,
    leave_after: int | None,
) -> None:
    hasher = hashlib.sha256()
    promised = answer.promised
    if promised is None:
        answer.reason = "no length"
        return
    while answer.received < promised:
        async with asyncio.timeout(_SILENCE):
            piece = await reader.read(min(_PIECE if rate is None else 16 << 10, promised - answer.received))
        if not piece:
            answer.reason = "ended early"
            return
        position = answer.start + answer.received
        if content is not None and answer.wrong_at is None and content[position : position + len(piece)] != piece:
            wanted = content[position : position + len(piece)]
            answer.wrong_at = position + next(
                (n for n, (one, other) in enumerate(zip(wanted, piece, strict=False)) if one != other), len(wanted)
            )
        hasher.update(piece)
        answer.received += len(piece)
        if leave_after is not None and answer.received >= leave_after:
            answer.outcome = "left"
            return
        if rate is not None:
            await asyncio.sleep(len(piece) / rate)
    answer.outcome = "complete"
    if answer.status == 200:
        answer.sha256 = hasher.hexdigest()
