"""A hosted repository in dicts, for tests of the handlers: it keeps what is pushed, and forgets it with the test.

It receives as the real one does: a body is read by a thread, which leaves whenever no byte is here.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

from mirror.errors import (
    BlobUnknown,
    DigestInvalid,
    ManifestUnknown,
    MirrorError,
    UploadBusy,
    UploadUnknown,
)
from mirror.oci.digest import Digest
from mirror.oci.manifest import read_manifest
from mirror.oci.reference import Reference, Repo
from mirror.policy.access_rules import Action
from mirror.ports import OWN_WORK, Steps
from mirror.repository.answers import BlobContent, BlobStat, Outcome
from mirror.repository.protocol import ManifestPushed, PushBody, Pusher


class MemoryUpload:
    """An `Upload`. `turns` counts how often a thread was needed."""

    def __init__(self, repository: MemoryWritable, session: str) -> None:
        self._repository = repository
        self._session = session
        self.turns = 0

    @property
    def content(self) -> bytearray:
        """What has come so far."""
        return self._repository.sessions[self._session]

    @property
    def offset(self) -> int:
        """How many bytes the session has."""
        return len(self.content)

    async def append(self, body: PushBody) -> int:
        """See `Upload.append`."""
        if self._repository.refuse is not None:
            raise self._repository.refuse
        while await body.wait(self._idle):
            self.turns += 1
            await asyncio.to_thread(self._take, body)
            self._repository.received()
        return self.offset

    async def _idle(self) -> None:
        self._repository.idle += 1

    def _take(self, body: PushBody) -> None:
        buffer = memoryview(bytearray(1 << 20))
        while True:
            # as `pump` does: the socket, for as long as it has bytes
            getattr(body, "plain_socket", lambda: None)()
            count = body.readinto(buffer)
            if not count:
                return
            self.content.extend(buffer[:count])

    async def commit(self, digest: Digest) -> int:
        """See `Upload.commit`."""
        content = bytes(self.content)
        if not digest.matches(content):
            raise DigestInvalid(f"the upload is not {digest}")
        self._repository.blobs[digest] = content
        del self._repository.sessions[self._session]
        return len(content)

    async def complete(self, body: PushBody, digest: Digest) -> int:
        """See `Upload.complete`."""
        await self.append(body)
        return await self.commit(digest)

    async def cancel(self) -> None:
        """See `Upload.cancel`."""
        self._repository.sessions.pop(self._session, None)

    async def close(self) -> None:
        """See `Upload.close`."""
        self._repository.busy.discard(self._session)


class MemoryWritable:
    """A `Writable`. `refuse` is raised before a body is read; `received` is called after each turn of a thread."""

    def __init__(self, repo: Repo) -> None:
        self.repo = repo
        self.blobs: dict[Digest, bytes] = {}
        self.manifests: dict[Digest, tuple[bytes, str | None]] = {}
        self.tags: dict[str, Digest] = {}
        self.sessions: dict[str, bytearray] = {}
        self.busy: set[str] = set()
        #: What other repositories have, by name.
        self.elsewhere: dict[str, set[Digest]] = {}
        self.refuse: MirrorError | None = None
        self.received: Callable[[], Any] = lambda: None
        self.pushers: list[str] = []
        #: How often nothing came for a while from a client that was sending.
        self.idle = 0
        #: The sizes that clients said when they began an upload.
        self.sizes: list[int | None] = []
        self._numbers = itertools.count(1)

    async def stat_for_push(self, digest: Digest, pusher: Pusher) -> BlobStat:
        """See `Writable`."""
        if digest not in self.blobs:
            raise BlobUnknown("no such blob")
        return BlobStat(len(self.blobs[digest]), Outcome.HIT, "")

    async def blob_for_push(self, digest: Digest, pusher: Pusher) -> BlobContent:
        """See `Writable`."""
        raise BlobUnknown("no such blob")

    async def begin_upload(self, pusher: Pusher, size: int | None = None, digest: Digest | None = None) -> str:
        """See `Writable`."""
        if self.refuse is not None:
            raise self.refuse
        self.pushers.append(pusher.name)
        self.sizes.append(size)
        session = f"session-{next(self._numbers)}"
        self.sessions[session] = bytearray()
        return session

    def upload_offset(self, session: str, pusher: Pusher) -> int:
        """See `Writable`."""
        if session not in self.sessions:
            raise UploadUnknown("no such upload session")
        return len(self.sessions[session])

    async def upload(self, session: str, pusher: Pusher) -> MemoryUpload:
        """See `Writable`."""
        if session not in self.sessions:
            raise UploadUnknown("no such upload session")
        if session in self.busy:
            raise UploadBusy("another request writes to this session")
        self.busy.add(session)
        return MemoryUpload(self, session)

    async def mount(self, digest: Digest, source: Repo | None, pusher: Pusher) -> bool:
        """See `Writable`."""
        names = list(self.elsewhere) if source is None else [source.name]
        return any(digest in self.elsewhere.get(name, ()) for name in names)

    async def put_manifest(
        self, reference: Reference, tags: tuple[str, ...], content: bytes, media_type: str | None, pusher: Pusher
    ) -> ManifestPushed:
        """See `Writable`."""
        digest = reference if isinstance(reference, Digest) else Digest.of(content)
        if not digest.matches(content):
            raise DigestInvalid(f"the manifest is not {digest}")
        manifest = read_manifest(content, media_type, algorithm=digest.algorithm)
        self.manifests[digest] = (content, media_type)
        written = (*(() if isinstance(reference, Digest) else (reference,)), *tags)
        moved = tuple(tag for tag in written if self.tags.get(tag, digest) != digest)
        for tag in written:
            self.tags[tag] = digest
        return ManifestPushed(digest, written, manifest.subject.digest if manifest.subject else None, moved)

    async def delete_tag(self, tag: str, pusher: Pusher) -> None:
        """See `Writable`."""
        if self.tags.pop(tag, None) is None:
            raise ManifestUnknown("no such tag")

    async def delete_manifest(self, digest: Digest, pusher: Pusher) -> None:
        """See `Writable`."""
        if self.manifests.pop(digest, None) is None:
            raise ManifestUnknown("no such manifest")

    async def delete_blob(self, digest: Digest, pusher: Pusher) -> None:
        """See `Writable`."""
        if self.refuse is not None:
            raise self.refuse
        if self.blobs.pop(digest, None) is None:
            raise BlobUnknown("no such blob")

    async def undelete(self, reference: Reference, pusher: Pusher) -> None:
        """See `Writable`."""
        raise ManifestUnknown("nothing to bring back")


class FreePusher:
    """A `Pusher` who may do everything, or what `allowed` says."""

    def __init__(self, name: str = "user:alice", allowed: frozenset[Action] = frozenset(Action)) -> None:
        self.name = name
        self._allowed = allowed

    def may(self, action: Action, repo: Repo) -> bool:
        """See `Pusher.may`."""
        return action in self._allowed

    async def may_pull(self, repo: Repo) -> bool:
        """See `Pusher.may_pull`."""
        return Action.PULL in self._allowed

    def steps(self) -> Steps:
        """See `Pusher.steps`."""
        return OWN_WORK
