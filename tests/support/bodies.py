"""Bodies of upstreams, read to their end."""

from __future__ import annotations

import asyncio

from mirror.ports import Body


async def read_body(body: Body) -> bytes:
    """Everything that is left of it. Raises what its `readinto` raises."""

    def read() -> bytes:
        content, room = bytearray(), memoryview(bytearray(1 << 16))
        while count := body.readinto(room):
            content += room[:count]
        return bytes(content)

    return await asyncio.to_thread(read)
