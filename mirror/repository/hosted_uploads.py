"""One request that writes to an upload session of a hosted repository.

    append ──┬─ the body ends ──────────────────────────────> the session has it all
             ├─ the body breaks off, or comes too slowly ───> the session keeps what arrived
             ├─ the disk is full ───────────────────────────> cached content makes way, and the body goes on
             └─ the quota, or the disk all the same, is full > the session is over, and leaves nothing
    commit ──┬─ the digest is right ──> hosted and linked; the session is over
             └─ it is not ────────────> the session stays

A thread is used only while bytes are here: a client that sends slowly is waited for on the event loop.

A client that has vanished without a word looks like one that sends nothing. So while nothing comes, the session is not
locked, and another request of the same client may go on with it:

    appending ── nothing for `IDLE` seconds ──> released ──┬─ bytes come, and the session is as it was ──> appending
                                                           └─ another request has it, or has changed it ─> broken off
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Final, TypeVar

from mirror.aio.threads import run_uninterrupted
from mirror.errors import (
    BlobDamaged,
    BlobUnknown,
    DigestInvalid,
    NoRoomForPush,
    QuotaExceeded,
    StoreError,
    StoreFull,
    UploadBroken,
    UploadBusy,
    UploadUnknown,
)
from mirror.hosting.links import Links
from mirror.hosting.parts import HostedParts
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.ports import OWN_WORK, Steps, UploadFile
from mirror.repository.protocol import PushBody

T = TypeVar("T")
S = TypeVar("S", bound=int | None)

#: Bytes for which the disk must have room while a body arrives; after as many, it is looked at again. Cached content
#: makes way for as many at once (`Space.make_room_for_push`).
_AHEAD: Final = 64 << 20
#: Bytes of a body up to which the quota is looked at when it has come, rather than before: that takes one turn of a
#: thread less.
_SMALL: Final = 64 << 10


class HostedUpload:
    """See `Upload`. `room` makes sure that the disk has room for so many bytes more; `executor` runs the threads that
    receive bytes.
    """

    def __init__(
        self,
        repo: Repo,
        file: UploadFile,
        parts: HostedParts,
        links: Links,
        room: Callable[[int], Awaitable[None]],
        executor: Executor,
        counted: Callable[[Digest], Awaitable[int]],
        reopen: Callable[[], UploadFile],
        turn: Callable[[int], AbstractAsyncContextManager[None]] | None = None,
        *,
        steps: Callable[[], Steps] = lambda: OWN_WORK,
    ) -> None:
        """`counted` returns the size of a blob that counts already for every quota; 0 if it counts anew. `reopen` opens
        the file of the session again after it was closed, or raises `UploadBusy`, `UploadUnknown`. `turn` lets a blob
        of so many bytes be committed when it is its turn; None if a commit moves no bytes. `steps`: those of the
        request, see `Pusher`; a commit that has begun in time goes on.
        """
        self._repo = repo
        self._file = file
        self._parts = parts
        self._links = links
        self._room = room
        self._executor = executor
        self._counted = counted
        #: Bytes up to which the session may grow whatever the quota: the blob counts already, and has no more.
        self._granted = 0
        self._reopen = reopen
        self._turn = turn
        self._steps = steps
        #: How many bytes the session had when it was released; None while it is locked.
        self._released_at: int | None = None
        #: True once the session is over, which closes its file.
        self._over = False

    def __repr__(self) -> str:
        return f"<HostedUpload {self._repo} {self._file!r}>"

    @property
    def offset(self) -> int:
        """How many bytes the session has."""
        return self._file.offset

    async def append(self, body: PushBody) -> int:
        """See `Upload.append`."""
        return await self._append(body, None)

    async def _append(self, body: PushBody, digest: Digest | None) -> int:
        """`digest` is that of the whole blob, if the client has said it already."""
        async with self._over_if_full():
            if body.length is None or body.length > _SMALL:
                await self._check_quota(self.offset + (body.length or 1), digest)
            await self._room(body.length or 0)
            looked_at = self.offset
            while await self._wait(body):
                await self._receive(body)
                if self.offset - looked_at >= _AHEAD:
                    looked_at = self.offset
                    await self._room(_AHEAD)
        return self.offset

    async def complete(self, body: PushBody, digest: Digest) -> int:
        """See `Upload.complete`."""
        size = None
        if body.length is not None and body.length <= _SMALL:
            size = await self._at_once(body, digest, self.offset + body.length)
        if size is None:
            await self._append(body, digest)
            size = await self.commit(digest)
        return size

    async def _at_once(self, body: PushBody, digest: Digest, end: int) -> int | None:
        """Receives a small body and commits the blob, both in one turn of a thread: with more turns, they would cost
        more than the work. None if not all is here yet, or if room had to be made: then `append` goes on.
        """
        # `commit` judges it, which a body as small as this may wait for
        self._granted = end
        async with self._over_if_full():
            await self._wait(body)
            self._steps().go_on()
            try:
                return await self._committed(digest, lambda: self._fill_and_commit(body, digest, end), body.abort)
            except StoreFull:
                if self.offset == end:
                    raise
                await self._room(_AHEAD)
                await self._receive(body)
        return None

    def _fill_and_commit(self, body: PushBody, digest: Digest, end: int) -> int | None:
        self._file.fill(body, self._grown)
        return self._commit(digest) if self.offset == end else None

    @asynccontextmanager
    async def _over_if_full(self) -> AsyncIterator[None]:
        """Ends the session if the quota or the disk is full."""
        try:
            yield
        except (QuotaExceeded, StoreFull) as error:
            await self._give_up()
            if isinstance(error, StoreFull) and not isinstance(error, NoRoomForPush):
                raise NoRoomForPush(f"no room for this upload: {error}") from error
            raise

    async def _wait(self, body: PushBody) -> bool:
        """Returns once bytes can be read, with the session locked; False at the end of the body."""
        more = await body.wait(self._release)
        if self._released_at is not None:
            await self._lock_again()
        return more

    async def _release(self) -> None:
        self._released_at = self.offset
        await self._run(self._file.close)

    async def _lock_again(self) -> None:
        """Raises `UploadBroken` if another request has gone on with the session while it was released."""
        try:
            file = await self._run(self._reopen)
        except (UploadBusy, UploadUnknown):
            raise UploadBroken("another request goes on with this upload") from None
        if file.offset != self._released_at:
            await self._run(file.close)
            raise UploadBroken("another request has gone on with this upload")
        self._file, self._released_at = file, None

    async def _check_quota(self, size: int, digest: Digest | None) -> None:
        try:
            await self._run(self._grown, size)
        except QuotaExceeded:
            self._granted = await self._counted(digest) if digest else 0
            if size > self._granted:
                raise

    async def _receive(self, body: PushBody) -> None:
        """Receives what is here. Raises what `UploadFile.fill` raises, and `StoreFull` if no room can be made."""
        room_made_at = -1
        while True:
            try:
                return await self._run(self._file.fill, body, self._grown, stop=body.abort)
            except StoreFull:
                if self.offset == room_made_at:
                    raise
                # what could not be written is in memory, and is written by the next call
                room_made_at = self.offset
                await self._room(_AHEAD)

    def _grown(self, offset: int) -> None:
        if offset > self._granted:
            self._parts.accounts.allow(self._repo, offset)

    async def _give_up(self) -> None:
        with suppress(StoreError):
            await self.cancel()

    async def commit(self, digest: Digest) -> int:
        """See `Upload.commit`."""
        self._steps().go_on()
        try:
            if self._turn is None:
                return await self._committed(digest, lambda: self._commit(digest))
            async with self._turn(self.offset):
                return await self._committed(digest, lambda: self._commit(digest))
        except StoreFull as error:
            await self._give_up()
            raise NoRoomForPush(f"no room for {digest}: {error}") from error

    async def _committed(self, digest: Digest, work: Callable[[], S], stop: Callable[[], None] | None = None) -> S:
        """The result of work that commits the blob, unless it returns None. Raises `DigestInvalid`."""
        try:
            size = await self._run(work, stop=stop)
        except BlobDamaged as error:
            raise DigestInvalid(f"what was uploaded is not {digest}") from error
        self._over = size is not None
        return size

    def _commit(self, digest: Digest) -> int:
        info = self._file.publish(digest)
        try:
            self._links.make(self._repo, digest, info.size)
        except BlobUnknown as error:
            raise StoreError(f"{digest} was collected as soon as it was stored") from error
        self._parts.settle(self._repo)
        return info.size

    async def cancel(self) -> None:
        """See `Upload.cancel`."""
        await self._run(self._file.discard)
        self._over = True

    async def close(self) -> None:
        """See `Upload.close`."""
        if not self._over:
            await self._run(self._file.close)

    async def _run(self, work: Callable[..., T], *arguments: object, stop: Callable[[], None] | None = None) -> T:
        return await run_uninterrupted(self._executor, work, *arguments, stop=stop)
