"""Runs the blocking exchanges of `download.py` in threads, for callers on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import Executor
from functools import partial

from mirror.errors import UpstreamTimeout
from mirror.policy.upstream.url_bounds import Origin
from mirror.upstream.http.download import Answer, Cancel, Transfer
from mirror.upstream.http.transport import Endpoint


class BlobClient:
    """Requests blobs by a `Transfer`, in threads of `executor`."""

    def __init__(self, endpoint: Endpoint, transfer: Transfer, executor: Executor) -> None:
        self._upstream = endpoint.name
        self._transfer = transfer
        self._executor = executor
        # the transfer's own time-outs limit each exchange, but not the system's resolver, which cannot be ended
        self._longest = 6 * (endpoint.timeouts.connect + endpoint.timeouts.answer)

    async def get(
        self,
        url: str,
        headers: Mapping[str, str],
        passes: Mapping[Origin, str],
        *,
        start: int,
        stop: int | None,
        attempts: int = 2,
    ) -> Answer:
        """See `Transfer.get`. Raises `UpstreamTimeout` if the whole call takes too long.

        If the caller is cancelled, the exchange is ended, and a body that it still returns is closed.
        """
        cancel = Cancel()
        get = partial(
            self._transfer.get,
            url,
            headers,
            start=start,
            stop=stop,
            attempts=attempts,
            cancel=cancel,
            passes=passes,
        )
        running = asyncio.get_running_loop().run_in_executor(self._executor, get)
        ended = False
        try:
            ended = bool((await asyncio.wait({running}, timeout=self._longest))[0])
        finally:
            if not ended:
                cancel.now()
                running.add_done_callback(_close_unwanted)
        if not ended:
            raise UpstreamTimeout("upstream did not answer in time", upstream=self._upstream)
        return running.result()

    def close(self) -> None:
        """Close the idle connections. Bodies that are being read stay open. Repeatable."""
        self._transfer.close()


def _close_unwanted(done: asyncio.Future[Answer]) -> None:
    if not done.cancelled() and done.exception() is None and (body := done.result().body):
        body.close()
