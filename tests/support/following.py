"""The bytes of a flight that a client would be sent."""

from __future__ import annotations

from mirror.fills.flight import Flight


async def read_to_end(flight: Flight) -> bytes:
    """Every byte that a follower may be sent, in order."""
    sent = b""
    while (limit := await flight.wait_past(len(sent))) > len(sent):
        sent += flight.reader.pread(limit - len(sent), len(sent))
    return sent
