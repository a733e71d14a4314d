"""Uploads of cached blobs that become hosted, behind a request that waits for a short time only.

wait() ──┬─ ends in time ──────────> its result
         ├─ takes longer ──────────> the blob is unknown for now: the client uploads it; the work goes on
         └─ too many are at it ────> the same, and nothing is begun
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final

from mirror.errors import BlobUnknown
from mirror.oci.digest import Digest
from mirror.ports import BlobInfo

#: Blobs that one process uploads at the same time in this way.
_MOST: Final = 4


class Adoptions:
    """The work of one process. May be used from any thread."""

    def __init__(self, adopt: Callable[[Digest], BlobInfo]) -> None:
        """`adopt` uploads a blob. Blocks, for minutes if the blob is large."""
        self._adopt = adopt
        self._running: dict[Digest, Future[BlobInfo]] = {}
        self._changing = threading.Lock()

    def __repr__(self) -> str:
        return f"<Adoptions {len(self._running)} running>"

    def wait(self, digest: Digest, patience: float) -> BlobInfo:
        """The result of `adopt`; calls for one digest share the work. Raises what it raises, and `BlobUnknown` if it
        takes longer than `patience` seconds.
        """
        running = self._join(digest)
        if running is None:
            raise BlobUnknown(f"{digest} is not in the bucket, and other blobs are on their way into it")
        try:
            return running.result(timeout=patience)
        except TimeoutError:
            raise BlobUnknown(f"{digest} is still on its way into the bucket") from None

    def _join(self, digest: Digest) -> Future[BlobInfo] | None:
        with self._changing:
            running = self._running.get(digest)
            if running is None and len(self._running) < _MOST:
                running = self._running[digest] = Future()
                # the process may end without it: what is left of an upload is aborted later
                threading.Thread(target=self._run, args=(digest, running), name="adoption", daemon=True).start()
            return running

    def _run(self, digest: Digest, running: Future[BlobInfo]) -> None:
        try:
            running.set_result(self._adopt(digest))
        except BaseException as error:
            running.set_exception(error)
        finally:
            with self._changing:
                del self._running[digest]
