"""A hosted repository: clients pull from it, push to it and delete from it.

    pull             `hosted_content.py`
    upload a blob    begin_upload ──> upload ──> append … ──> commit       `hosted_uploads.py`
    or not           stat_for_push: reserved   mount: linked               if the caller may pull it elsewhere here
    put_manifest     `hosting/pushing.py`
    delete           `hosting/deleting.py`

Whoever calls a verb that writes has checked that the caller may push, or delete. Only what depends on content is
decided here: whether a tag would be overwritten, and from where a blob may be taken. Everything that is answered is
durable, and every process sees it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, TypeVar

from mirror.aio.bounded_threads import in_thread
from mirror.aio.threads import run_uninterrupted
from mirror.errors import BlobUnknown, QuotaExceeded, UploadBusy, UpstreamError
from mirror.hosting.deleting import Deleting
from mirror.hosting.links import Links
from mirror.hosting.parts import HostedParts
from mirror.hosting.pushing import ManifestPut, Pushing
from mirror.hosting.rights import Sources
from mirror.hosting.sessions import Sessions
from mirror.hosting.upload_turns import UploadTurns
from mirror.oci.digest import Digest
from mirror.oci.reference import Reference, Repo
from mirror.policy.access_rules import Action
from mirror.policy.events.changes import ChangeKind, HostedChange
from mirror.policy.hosted.push_checks import HostedRules, may_use, read_pushed
from mirror.policy.hosted_records import BlobLink
from mirror.ports import Steps, UploadFile
from mirror.repository.answers import BlobContent, BlobStat, Outcome
from mirror.repository.hosted_content import HostedContent
from mirror.repository.hosted_uploads import HostedUpload
from mirror.repository.protocol import IDLE, ManifestPushed, Pusher, Upload

T = TypeVar("T")

#: Seconds between two tries to open a session that another request writes to, and how many there are.
_PAUSE: Final = 0.25
_LOOKS: Final = int(IDLE / _PAUSE) + 4


@dataclass(frozen=True, slots=True)
class HostedVerbs:
    """What can be done with hosted repositories, by the classes that do it.

    `room` makes sure that the disk has room for so many bytes more; it raises `NoRoomForPush`. `executor` runs the
    threads that write. `turns`: of large blobs, if commits upload them to a bucket.
    """

    parts: HostedParts
    links: Links
    pushing: Pushing
    deleting: Deleting
    sessions: Sessions
    sources: Sources
    room: Callable[[int], Awaitable[None]]
    executor: Executor
    turns: UploadTurns | None = None


class HostedRepository:
    """One repository of a hosted registry: `Readable` and `Writable`. Cheap to make: it keeps no state of its own."""

    def __init__(self, content: HostedContent, rules: HostedRules, verbs: HostedVerbs) -> None:
        self.repo: Repo = content.repo
        self._content = content
        self._rules = rules
        self._verbs = verbs
        # pulls are answered by the other half, without a call in between
        self.manifest = content.manifest
        self.resolve = content.resolve
        self.blob = content.blob
        self.stat_blob = content.stat_blob
        self.blob_object = content.blob_object
        self.read = content.read
        self.tags = content.tags
        self.referrers = content.referrers
        self.has = content.has
        self.indexes_naming = content.indexes_naming
        self.has_tag = content.has_tag
        self.manifest_stands = content.manifest_stands
        self.blob_stands = content.blob_stands

    def __repr__(self) -> str:
        return f"<HostedRepository {self.repo}>"

    async def _run(self, work: Callable[[], T]) -> T:
        return await run_uninterrupted(self._verbs.executor, work)

    def _check_writable(self, *, creates: bool = True) -> None:
        """Raises `Denied` if the registry is read-only, or does not allow pushes to this name."""
        self._rules.check_writable(self.repo, creates=creates)

    @property
    def _takes_pushes(self) -> bool:
        return not self._rules.read_only and self._rules.allow_name(self.repo.name)

    # --------------------------------------------------------------------------------------------------------- blobs

    async def stat_for_push(self, digest: Digest, pusher: Pusher) -> BlobStat:
        """See `Writable`."""
        if not self._takes_pushes:
            return await self._content.stat_blob(digest)
        repo, links = self.repo, self._verbs.links

        def look() -> BlobLink | Sequence[Repo]:
            with suppress(BlobUnknown):
                return links.use(repo, digest, pusher.name)
            if links.is_removed(repo, digest):
                raise BlobUnknown(f"{repo} has no blob {digest}")
            # in the same turn of a thread: nearly every blob of a push is absent
            return sources.first_hosted(digest)

        sources = self._verbs.sources
        found = await self._run(look)
        if isinstance(found, BlobLink):
            return BlobStat(found.size, Outcome.HIT, repo.registry)
        size = await sources.find(digest, lambda repo: pusher.may(Action.PULL, repo), found)
        if size is None or not await self._run(lambda: self._reserve(digest, size, pusher.name)):
            raise BlobUnknown(f"{repo} has no blob {digest}")
        return BlobStat(size, Outcome.HIT, repo.registry)

    async def _source(self, digest: Digest, pusher: Pusher) -> int | None:
        """Returns the size of a blob that the caller may pull elsewhere here, unless a client has deleted it in this
        repository; None if there is none.
        """
        if await in_thread(self._verbs.parts.threads, self._verbs.links.is_removed, self.repo, digest):
            return None
        return await self._verbs.sources.find(digest, lambda repo: pusher.may(Action.PULL, repo))

    def _reserve(self, digest: Digest, size: int, caller: str) -> bool:
        """Blocking: reserves a blob. False if a client has deleted it here. Raises `BlobUnknown`."""
        reserved = self._verbs.links.reserve(self.repo, digest, size, caller)
        self._verbs.parts.settle(self.repo)
        return reserved

    async def blob_for_push(self, digest: Digest, pusher: Pusher) -> BlobContent:
        """See `Writable`."""
        link = await self._content.link(digest)
        if link is None or not may_use(link, pusher.name):
            raise BlobUnknown(f"{self.repo} has no blob {digest}")
        return await self._content.content(link)

    async def mount(self, digest: Digest, source: Repo | None, pusher: Pusher) -> bool:
        """See `Writable`."""
        self._check_writable()
        sources, size, steps = self._verbs.sources, None, pusher.steps()
        if source is None:
            size = await self._source(digest, pusher)
        else:
            # an upstream that does not answer for its registry's callers only costs the client an upload
            with suppress(UpstreamError):
                if await pusher.may_pull(source):
                    if sources.hosts(source):
                        # one turn of a thread, rather than two
                        return await self._run(
                            lambda: self._mount(
                                digest, sources.size_now(source, digest), pusher.name, str(source), steps
                            )
                        )
                    size = await sources.size(source, digest)
        if size is None:
            return False
        return await self._run(lambda: self._mount(digest, size, pusher.name, str(source or ""), steps))

    def _mount(self, digest: Digest, size: int | None, caller: str, source: str, steps: Steps) -> bool:
        """Blocking: links a blob of this size. False if there is none (`size` is None), or if its bytes have gone
        meanwhile. Raises `QuotaExceeded`, `StaleRequest`.
        """
        if size is None:
            return False
        mounted = HostedChange(ChangeKind.MOUNT, self.repo, caller, digest, size=size, source=source)
        announced = self._verbs.parts.events.begin(mounted.kind, self.repo, lambda: mounted)
        try:
            with suppress(BlobUnknown):
                steps.go_on()
                self._verbs.links.make(self.repo, digest, size)
                self._verbs.parts.settle(self.repo)
                announced.done()
                return True
            return False
        finally:
            announced.end()

    async def begin_upload(self, pusher: Pusher, size: int | None = None, digest: Digest | None = None) -> str:
        """See `Writable`."""
        self._check_writable()
        verbs = self._verbs

        def begin() -> str:
            verbs.parts.accounts.check(self.repo, size or 1)
            return verbs.sessions.begin(self.repo, pusher.name)

        await verbs.room(size or 0)
        try:
            return await self._run(begin)
        except QuotaExceeded:
            known = await self._counted(digest, pusher) if digest else 0
            if not known or known < (size or 1):
                raise
        return await self._run(lambda: verbs.sessions.begin(self.repo, pusher.name))

    async def _counted(self, digest: Digest, pusher: Pusher) -> int:
        """Returns the size of a blob that counts already wherever a quota limits this repository; 0 if it counts anew,
        or if the caller may not know that it is here: the answer to an upload must not say more than one to HEAD.
        """

        def own() -> int | None:
            with suppress(BlobUnknown):
                return self._verbs.links.own(self.repo, digest, pusher.name).size
            return None

        size = await self._run(own)
        if size is None:
            size = await self._verbs.sources.find(digest, lambda repo: pusher.may(Action.PULL, repo))
        if size is None:
            return 0
        try:
            await self._run(lambda: self._verbs.parts.accounts.check(self.repo, size, digest))
        except QuotaExceeded:
            return 0
        return size

    def upload_offset(self, session: str, pusher: Pusher) -> int:
        """See `Writable`."""
        return self._verbs.sessions.offset(session, self.repo, pusher.name)

    async def upload(self, session: str, pusher: Pusher) -> Upload:
        """See `Writable`."""
        self._check_writable()
        verbs, turns = self._verbs, self._verbs.turns

        def open_file() -> UploadFile:
            return verbs.sessions.open(session, self.repo, pusher.name)

        file = await self._open(open_file, lambda: self.upload_offset(session, pusher))
        return HostedUpload(
            self.repo,
            file,
            verbs.parts,
            verbs.links,
            verbs.room,
            verbs.executor,
            lambda digest: self._counted(digest, pusher),
            open_file,
            None if turns is None else lambda size: turns.turn(pusher.name, size),
            steps=pusher.steps,
        )

    async def _open(self, open_file: Callable[[], UploadFile], offset: Callable[[], int]) -> UploadFile:
        """Opens a session. If another request has it whose client sends nothing, waits until that releases it. Raises
        `UploadBusy` if its client sends, or does not stop long enough.
        """
        looks, before = 0, None
        while True:
            try:
                # no thread: this only opens a file, as every pull of a blob does
                return open_file()
            except UploadBusy:
                looks, now = looks + 1, offset()
                if looks >= _LOOKS or before not in (None, now):
                    raise
                before = now
            await asyncio.sleep(_PAUSE)

    async def delete_blob(self, digest: Digest, pusher: Pusher) -> None:
        """See `Writable`."""
        self._check_writable(creates=False)
        deleting, steps = self._verbs.deleting, pusher.steps()
        await self._run(lambda: deleting.delete_blob(self.repo, digest, pusher.name, steps=steps))

    # ---------------------------------------------------------------------------------------------- manifests and tags

    async def put_manifest(
        self, reference: Reference, tags: tuple[str, ...], content: bytes, media_type: str | None, pusher: Pusher
    ) -> ManifestPushed:
        """See `Writable`."""
        self._check_writable()
        may_overwrite = pusher.may(Action.OVERWRITE, self.repo)
        pushing, steps = self._verbs.pushing, pusher.steps()

        def put() -> ManifestPushed:
            pushed = ManifestPut(read_pushed(content, media_type, reference), reference, tags)
            moved = pushing.put(self.repo, self._rules, pushed, pusher.name, may_overwrite=may_overwrite, steps=steps)
            subject = pushed.manifest.subject
            return ManifestPushed(pushed.manifest.digest, pushed.all_tags, subject.digest if subject else None, moved)

        return await self._run(put)

    async def delete_tag(self, tag: str, pusher: Pusher) -> None:
        """See `Writable`."""
        self._check_writable(creates=False)
        deleting, keep, steps = self._verbs.deleting, self._rules.keep_deleted > 0, pusher.steps()
        await self._run(lambda: deleting.delete_tag(self.repo, tag, pusher.name, keep=keep, steps=steps))

    async def delete_manifest(self, digest: Digest, pusher: Pusher) -> None:
        """See `Writable`."""
        self._check_writable(creates=False)
        deleting, keep, steps = self._verbs.deleting, self._rules.keep_deleted > 0, pusher.steps()
        await self._run(lambda: deleting.delete_manifest(self.repo, digest, pusher.name, keep=keep, steps=steps))

    async def undelete(self, reference: Reference, pusher: Pusher) -> None:
        """See `Writable`."""
        self._check_writable(creates=False)
        deleting, sparse, steps = self._verbs.deleting, self._rules.sparse_images, pusher.steps()
        if isinstance(reference, Digest):
            await self._run(
                lambda: deleting.undelete_manifest(self.repo, reference, pusher.name, sparse=sparse, steps=steps)
            )
        else:
            await self._run(lambda: deleting.undelete_tag(self.repo, reference, pusher.name, steps=steps))
