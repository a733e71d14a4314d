"""How blobs that the store does not have come to this process."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

from mirror.fills.flights import Flights
from mirror.fills.sources import BlobSource, BlobSources, FromUpstream, Pull
from mirror.oci.digest import Digest


@dataclass(frozen=True, slots=True)
class Transfers:
    """Into the store by flights, or past it by streams to one client.

    `executor` runs the threads that receive a stream; `received` counts the bytes that upstream has sent in streams.
    `nearer` makes the source of a blob that is asked before its upstream; None if there is none.
    """

    flights: Flights
    executor: Executor
    received: Callable[[int], None]
    nearer: Callable[[Digest], BlobSource] | None = None

    def sources(self, digest: Digest, pull: Pull, granted: int) -> BlobSources:
        """Returns where a blob comes from: `pull` asks its upstream. A nearer source is asked only if a manifest of the
        repository names the blob, with its size (`granted` >= 0): otherwise an answer of upstream is the right to it.
        """
        if self.nearer is None or granted < 0:
            return BlobSources.of(pull)
        return BlobSources(self.nearer(digest), FromUpstream(pull))
