"""Bodies that are received into memory take no more of it together than they may."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from mirror.errors import TooManyUploads
from mirror.oci.manifest import LARGEST
from mirror.server.registry.receiving import HeldBodies
from tests.support.live_mirror import PATIENCE, until
from tests.support.push_client import hosting_mirror


class _Connection:
    """Notes why it was dropped."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def drop(self, reason: str) -> None:
        self.reasons.append(reason)


def test_the_longest_is_dropped() -> None:
    """However much of it has come; never the one that has just grown, which alone is not too large."""
    held, connections = HeldBodies(1000), [_Connection() for _ in range(3)]
    first, second, third = connections
    held.grow(first, 100)
    held.grow(second, 500)
    held.grow(third, 300)
    held.grow(first, 100)
    assert held.size == 1000
    held.grow(third, 50)
    assert ([each.reasons for each in connections], held.size) == ([["memory"], [], []], 850)
    held.grow(second, 1000)
    assert second.reasons == third.reasons == []
    held.leave(second)
    held.leave(second)
    assert held.size == 350
    held.leave(third)
    assert (held.size, third.reasons) == (0, [])


def test_what_is_whole_is_kept_until_it_is_worked_on() -> None:
    """Nobody whose manifest is whole is dropped: who comes then is to ask again. Nor is one that is still coming, since
    that would not make enough room.
    """
    held, connections = HeldBodies(1000), [_Connection() for _ in range(3)]
    first, second, third = connections
    held.grow(first, 900)
    held.arrived(first)
    held.grow(second, 50)
    with pytest.raises(TooManyUploads):
        held.grow(third, 200)
    held.leave(third)
    assert ([each.reasons for each in connections], held.size) == ([[], [], []], 950)
    held.grow(third, 75)
    assert ([each.reasons for each in connections], held.size) == ([[], ["memory"], []], 975)
    held.leave(first)
    held.leave(third)
    assert held.size == 0


async def test_clients_that_send_manifests_slowly(tmp_path: Path) -> None:
    """Many of them do not fill the memory; those that go on sending get their answers."""
    async with hosting_mirror(tmp_path) as mirror:
        held = mirror.app.front._pushes.receiver.held
        held._most = 2 * LARGEST
        head = f"PUT /v2/corp/app/manifests/v1 HTTP/1.1\r\nHost: x\r\nContent-Length: {LARGEST}\r\n\r\n".encode()
        lines = []
        for number in range(3):
            reader, writer = await asyncio.open_connection("127.0.0.1", mirror.port)
            lines.append((reader, writer))
            before = held.size
            writer.write(head + b" " * (LARGEST - 1))
            if number < 2:
                await until(lambda before=before: held.size - before == LARGEST - 1)  # type: ignore[misc]
        async with asyncio.timeout(PATIENCE):
            assert await lines[0][0].read() == b""
            for reader, writer in lines[1:]:
                writer.write(b"x")
                assert (await reader.readline()).startswith(b"HTTP/1.1 400 ")
        assert held.size == 0
        await until(lambda: bool(mirror.events("connections dropped")))
        [dropped] = mirror.events("connections dropped")
        assert dropped["memory"] == 1
        for _, writer in lines:
            writer.close()
