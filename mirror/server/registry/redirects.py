"""Sends clients of some networks to the bucket for large blobs: 307, to a URL that is valid for a short time.

    a GET of a blob ── policy: the client, the parts, the size ──> the repository: does the bucket have it, now?
                                                                     │ rights and rules were judged before
        the bytes, from here <── no, or no answer in time ───────────┴── yes ── the object is there ── signed ──> 307

Whoever has the URL can read the blob, so it stands in the answer alone: no log, metric or error has it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Final

from aiohttp import web

from mirror import telemetry
from mirror.aio.bounded_threads import in_thread
from mirror.aio.breaker import Breaker
from mirror.aio.caches import TtlCache
from mirror.errors import MirrorError, StoreError
from mirror.oci.digest import Digest
from mirror.policy.clients.redirecting import RedirectRule, asked_bytes
from mirror.ports import BlobObject, ObjectReader, ObjectSigner
from mirror.repository.protocol import InBucket
from mirror.server.registry.client_addresses import ClientAddresses
from mirror.server.registry.responses import redirect_headers

#: Seconds that the bucket gets to say that it has a blob. Then the blob is sent from here.
_PATIENCE: Final = 3.0
#: Seconds within which a client that asks for the same blob again gets it from here: perhaps it cannot reach the
#: bucket, or what it got there was damaged.
_AGAIN: Final = 60.0
_MOST_SENT: Final = 20_000


class Redirects:
    """The redirects of one process."""

    def __init__(
        self,
        rule: RedirectRule,
        addresses: ClientAddresses,
        bucket: ObjectReader,
        signer: ObjectSigner,
        *,
        patience: float = _PATIENCE,
        clock: Callable[[], float] = time.monotonic,
        threads: Executor | None = None,
    ) -> None:
        """`bucket` says whether an object is there, asked in `threads` (None: in those of the event loop); `signer`
        makes the URL by which clients reach the bucket.
        """
        self._threads = threads
        self._rule = rule
        self._addresses = addresses
        self._bucket = bucket
        self._signer = signer
        self._patience = patience
        self._breaker = Breaker(clock)
        self._sent: TtlCache[tuple[str, Digest], bool] = TtlCache(_MOST_SENT, _AGAIN, clock, name="redirected clients")

    def __repr__(self) -> str:
        return f"<Redirects to {self._bucket!r} {self._breaker!r}>"

    async def answer(self, request: web.BaseRequest, digest: Digest, blobs: object) -> tuple[web.Response, int] | None:
        """The answer to a GET of a blob by a caller who may pull it, and how many bytes it stands for; None if the
        bytes are to be sent from here.
        """
        client, header = self._addresses.known(request), _range_header(request)
        refused = self._rule.of_request(
            client, header, conditional="If-Range" in request.headers, again=(client or "", digest) in self._sent
        )
        if client is None or refused is not None or not isinstance(blobs, InBucket):
            return None
        ticket = self._breaker.admit()
        if ticket is None:
            telemetry.BUCKET_NOT_REDIRECTED.inc()
            return None
        try:
            async with asyncio.timeout(self._patience):
                located = await self._locate(digest, blobs)
        except (StoreError, TimeoutError) as error:
            self._failed(ticket, str(error) or f"no answer within {self._patience:g} s")
            return None
        except MirrorError:
            # `blob` raises it again
            self._breaker.withdraw(ticket)
            return None
        except BaseException:
            self._breaker.withdraw(ticket)
            raise
        if self._breaker.succeed(ticket):
            telemetry.log.info("redirects to bucket work again")
        asked = None if located is None else asked_bytes(header, located[1])
        if located is None or asked is None:
            return None
        self._sent[client, digest] = True
        telemetry.BUCKET_REDIRECTS.inc()
        telemetry.BUCKET_REDIRECTED_BYTES.inc(asked)
        return web.Response(status=307, headers={**redirect_headers(digest), "Location": located[0]}), asked

    def _failed(self, ticket: int, reason: str) -> None:
        telemetry.BUCKET_NOT_REDIRECTED.inc()
        if self._breaker.fail(ticket):
            telemetry.log.warning("redirects to bucket suspended", reason=reason)

    async def _locate(self, digest: Digest, blobs: InBucket) -> tuple[str, int] | None:
        """The URL of the blob's object, and its size. Raises `MirrorError`."""
        found = await blobs.blob_object(digest)
        if found is None or (found.size >= 0 and self._rule.of_blob(found.size) is not None):
            return None
        return await in_thread(self._threads, self._sign, found)

    def _sign(self, found: BlobObject) -> tuple[str, int] | None:
        """Blocking."""
        info = self._bucket.head(found.key)
        if info is None or found.size not in (-1, info.size):
            # the flight that sends the blob from here finds out what is wrong with the object
            return None
        if self._rule.of_blob(info.size) is not None:
            return None
        url = self._signer.sign(found.key, self._rule.life)
        if url is None:
            raise StoreError("the credentials of the bucket cannot sign URLs")
        return url, info.size


def _range_header(request: web.BaseRequest) -> str | None:
    """The `Range` header. Several of them are ignored, as where blobs are sent."""
    ranges = request.headers.getall("Range", [])
    return ranges[0] if len(ranges) == 1 else None
