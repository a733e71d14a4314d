"""How long the mirror takes to answer /livez, asked every 50 ms by a process of its own on connections of their own.

It stands for the lag of the workers' event loops, as it can be seen from outside: it also holds connecting, the wait
for a processor that others use, and the wait for a worker to be replaced whose queue the connection was in.

    python -m bench.soaking.livez PORT FILE    one line for each question, seconds since the epoch and milliseconds;
                                               no milliseconds: no answer. Ends with SIGTERM.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, TextIO

from bench.process import Server

_ROOT: Final = Path(__file__).resolve().parents[2]
_EVERY: Final = 0.05
_PATIENCE: Final = 10.0
_REQUEST: Final = b"GET /livez HTTP/1.1\r\nHost: soak\r\nConnection: close\r\n\r\n"


def start_asking(port: int, place: Path) -> Server:
    """The process; it asks until it is stopped."""
    argv = [sys.executable, "-m", "bench.soaking.livez", str(port), str(place)]
    return Server(argv, log=place.with_suffix(".output"), cwd=_ROOT)


def latencies(place: Path, began: float, quiet: Sequence[tuple[float, float]]) -> tuple[list[float], list[float], int]:
    """Milliseconds of all answers, of those outside the spans `quiet` (seconds since `began`), and how many had none.

    `began` in seconds since the epoch.
    """
    every, calm, silent = [], [], 0
    for line in place.read_text().splitlines():
        at, _, milliseconds = line.partition(" ")
        if not milliseconds:
            silent += 1
            continue
        every.append(float(milliseconds))
        if not any(start <= float(at) - began <= stop for start, stop in quiet):
            calm.append(float(milliseconds))
    return sorted(every), sorted(calm), silent


async def _ask(port: int, output: TextIO) -> None:
    at, began = time.time(), time.perf_counter()
    taken = ""
    try:
        async with asyncio.timeout(_PATIENCE):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(_REQUEST)
                if (await reader.readline()).startswith(b"HTTP/1.1 200"):
                    taken = f"{(time.perf_counter() - began) * 1000:.2f}"
            finally:
                writer.transport.abort()
    except OSError:
        pass  # the line without a time says it; TimeoutError is one of these
    output.write(f"{at:.3f} {taken}".rstrip() + "\n")


async def _main(port: int, place: Path) -> None:
    asking: set[asyncio.Task[None]] = set()
    with place.open("w", buffering=1) as output:
        while True:
            task = asyncio.create_task(_ask(port, output))
            asking.add(task)
            task.add_done_callback(asking.discard)
            await asyncio.sleep(_EVERY)


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), Path(sys.argv[2])))
