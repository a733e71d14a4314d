"""A hosted registry in memory: its repositories, callers who push to them, and the cached repositories beside it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from mirror.aio.background import BackgroundTasks
from mirror.errors import NoRoomForPush, QuotaExceeded, UploadBroken
from mirror.hosting.deleting import Deleting
from mirror.hosting.links import Links
from mirror.hosting.parts import AtOnce, HostedParts, one_by_one
from mirror.hosting.placing import Placing
from mirror.hosting.pushing import Pushing
from mirror.hosting.rights import Sources
from mirror.hosting.sessions import Sessions
from mirror.intake.grants import Grants
from mirror.intake.integrity import Integrity
from mirror.intake.tag_history import TagHistories, TamperProofClock
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_INDEX, OCI_MANIFEST
from mirror.oci.reference import Reference, Repo
from mirror.policy.access_rules import Action
from mirror.policy.hosted.immutability import ImmutableTags
from mirror.policy.hosted.push_checks import HostedRules
from mirror.policy.records import Freeze
from mirror.policy.unreadable_records import UnreadableRecord
from mirror.ports import OWN_WORK, SILENCE, Announcer, BlobReader, Steps
from mirror.repository.caches import Caches
from mirror.repository.hosted import HostedRepository, HostedVerbs
from mirror.repository.hosted_content import HostedContent, HostedMemory
from mirror.repository.protocol import ManifestPushed
from mirror.repository.tag_windows import TagWindows
from tests.support.clock import Clock
from tests.support.memory_hosted_records import MemoryHostedRecords
from tests.support.memory_hosting import MemoryContents, MemoryHostedBlobs, MemoryUploads
from tests.support.memory_index import MemoryIndex
from tests.support.memory_store import MemoryCatalog, MemoryStore

TEAM: Final = Repo("corp", "team/app")
OTHER: Final = Repo("corp", "other/app")
CACHED: Final = Repo("docker.io", "library/app")
CONFIG: Final = "application/vnd.oci.image.config.v1+json"
LAYER: Final = "application/vnd.oci.image.layer.v1.tar+gzip"


class Caller:
    """A `Pusher` who may pull from some repositories, and overwrite tags or not."""

    def __init__(self, name: str, *pulls: Repo, overwrite: bool = True, verified: Sequence[Repo] = ()) -> None:
        """`verified` are repositories of registries whose upstream is asked about the caller, and says yes."""
        self.name = name
        self.pulls = set(pulls)
        self.overwrite = overwrite
        self.verified = set(verified)
        #: The repositories about which the rules were asked.
        self.asked: list[Repo] = []
        #: Those of its requests.
        self.made_steps: Steps = OWN_WORK

    def may(self, action: Action, repo: Repo) -> bool:
        self.asked.append(repo)
        return repo in self.pulls if action is Action.PULL else self.overwrite or action is not Action.OVERWRITE

    async def may_pull(self, repo: Repo) -> bool:
        return self.may(Action.PULL, repo) or repo in self.verified

    def steps(self) -> Steps:
        return self.made_steps


class Sent:
    """The body of a request, of which a piece arrives at each `wait`; an error among the pieces is raised. None among
    them is a time in which nothing comes, an event one that lasts until it is set.
    """

    start = 0

    def __init__(self, *pieces: bytes | Exception | asyncio.Event | None, length: int | None = None) -> None:
        self._pieces = list(pieces)
        self._here = b""
        self.length = length

    @property
    def size(self) -> int | None:
        return self.length

    async def wait(self, idle: Callable[[], Awaitable[None]] | None = None) -> bool:
        while self._pieces:
            piece = self._pieces.pop(0)
            if isinstance(piece, Exception):
                raise piece
            if isinstance(piece, bytes):
                self._here = piece
                return True
            if piece is not None:
                await piece.wait()
            elif idle is not None:
                await idle()
        return False

    def readinto(self, buffer: memoryview) -> int:
        given, self._here = self._here[: len(buffer)], self._here[len(buffer) :]
        buffer[: len(given)] = given
        return len(given)

    def abort(self) -> None:
        self._pieces = [UploadBroken("aborted")]


class MemoryFreezes:
    """`Freezes` in a dict."""

    def __init__(self) -> None:
        self.by_tag: dict[tuple[Repo, str], Freeze] = {}

    def all(self) -> Sequence[Freeze]:
        return list(self.by_tag.values())

    def look(self) -> tuple[Sequence[Freeze], Sequence[UnreadableRecord]]:
        return self.all(), ()

    def get(self, repo: Repo, tag: str) -> Freeze | None:
        return self.by_tag.get((repo, tag))

    def put(self, freeze: Freeze) -> None:
        self.by_tag[freeze.repo, freeze.tag] = freeze

    def drop(self, repo: Repo, tag: str) -> bool:
        return self.by_tag.pop((repo, tag), None) is not None


class Limited:
    """`Accounts` with one limit for everything, in bytes."""

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.noted: dict[tuple[Repo, Digest], int] = {}

    def check(self, repo: Repo, size: int, digest: Digest | None = None) -> None:
        if digest is not None and any(digest == noted for _, noted in self.noted):
            return
        if self.limit is not None and sum(self.noted.values()) + size > self.limit:
            raise QuotaExceeded(f"the quota is {self.limit}")

    def allow(self, repo: Repo, size: int) -> None:
        self.check(repo, size)

    def link(self, repo: Repo, digest: Digest, size: int) -> None:
        if (repo, digest) not in self.noted:
            self.check(repo, size)
            self.noted[repo, digest] = size

    def unlink(self, repo: Repo, digest: Digest) -> None:
        self.noted.pop((repo, digest), None)


class HostedWorld:
    """The registry `corp`. Parts are replaced before `open`; a second `open` is another worker on the same disk."""

    def __init__(self, rules: HostedRules | None = None) -> None:
        self.rules = rules or HostedRules()
        self.clock = Clock()
        self.cache = MemoryStore()
        catalog, blobs = MemoryCatalog(), MemoryHostedBlobs(self.cache)
        #: May be replaced, by a `Hooked` for example.
        self.catalog: Any = catalog
        self.blobs: Any = blobs
        self.contents: Any = MemoryContents(self.cache, blobs)
        self.records: Any = MemoryHostedRecords(catalog)
        self.uploads: Any = MemoryUploads(blobs, now=self.clock)
        self.freezes = MemoryFreezes()
        self.accounts = Limited()
        self.announcer: Announcer = SILENCE
        self.at_once: AtOnce = one_by_one
        self.immutable = ImmutableTags()
        self.index = MemoryIndex()
        self.grants = Grants(self.index, self.catalog, self.cache)
        self.executor = ThreadPoolExecutor(4, "hosted")
        #: How many holders of a blob were asked for, at each question.
        self.holders_asked: list[int] = []
        #: Bytes for which room can be made at the most, those that evictions could free, and what was asked of `room`.
        self.free = 1 << 40
        self.cached_bytes = 0
        self.room_wanted: list[int] = []
        self.most_uploads = 1000
        self.most_uploads_per_caller = 100

    def __enter__(self) -> HostedWorld:
        return self

    def __exit__(self, *_: object) -> None:
        self.executor.shutdown()

    def verbs(self) -> HostedVerbs:
        """What can be done, with the parts as they are now."""
        clocks = TamperProofClock(self.clock, self.clock)
        histories = TagHistories(self.catalog, self.freezes, clocks)
        parts = HostedParts(
            self.contents,
            self.blobs,
            self.catalog,
            self.records,
            histories,
            self.accounts,
            self.immutable,
            86400.0,
            self.announcer,
            self.at_once,
        )
        links = Links(parts)
        placing = Placing(parts, links)
        deleting = Deleting(parts, links, placing)

        def holders(digest: Digest, most: int) -> Sequence[Repo]:
            self.holders_asked.append(most)
            return [repo for repo, noted in self.accounts.noted if noted == digest][:most]

        async def cached(digest: Digest, most: int) -> Sequence[Repo]:
            return [CACHED]

        caches = self.caches()
        sources = Sources(
            parts,
            links,
            holders,
            cached,
            self.grants,
            self.cache,
            Integrity(self.cache, caches.once, BackgroundTasks()),
            is_hosted=lambda registry: registry == "corp",
        )
        sessions = Sessions(self.uploads, most=self.most_uploads, most_per_caller=self.most_uploads_per_caller)
        pushing = Pushing(parts, placing, deleting)
        return HostedVerbs(parts, links, pushing, deleting, sessions, sources, self.room, self.executor)

    async def room(self, size: int) -> None:
        """The disk has room for `free` bytes. Notes what is wanted, and frees what is cached."""
        if size:
            self.room_wanted.append(size)
        if size > self.free:
            raise NoRoomForPush("the disk is full")
        if size > self.uploads.room:
            self.uploads.room, self.cached_bytes = self.uploads.room + self.cached_bytes, 0

    def caches(self) -> Caches:
        """The caches of a process."""
        return Caches(self.cache, self.catalog, _no_lists(), self.clock)

    def open(self, *repos: Repo) -> list[HostedRepository]:
        """Repositories as one worker has them."""
        verbs, caches = self.verbs(), self.caches()
        memory = HostedMemory(verbs.parts.pulled(), caches)
        integrity = Integrity(self.contents, caches.once, BackgroundTasks())
        return [
            HostedRepository(
                HostedContent(repo, verbs.parts.pulled(), verbs.links, memory, caches, integrity, self.executor),
                self.rules,
                verbs,
            )
            for repo in repos
        ]

    async def cached_blob(self, content: bytes) -> Digest:
        """A blob that the cached repository may serve."""
        digest = Digest.of(content)
        self.cache.put(digest, content)
        await self.index.link(CACHED, {digest: len(content)})
        return digest


def _no_lists() -> TagWindows:
    class _Lists:
        most_bytes = 0

        def page(self, key: str, last: str, count: int) -> None:
            return None

        def gather(self, key: str) -> Any:
            raise NotImplementedError

    return TagWindows(_Lists())


async def upload(repository: HostedRepository, content: bytes, caller: Caller) -> Digest:
    """Uploads a blob."""
    session = await repository.begin_upload(caller)
    upload = await repository.upload(session, caller)
    try:
        await upload.append(Sent(content))
        await upload.commit(Digest.of(content))
    finally:
        await upload.close()
    return Digest.of(content)


def descriptor(content: bytes, media_type: str = LAYER, **more: Any) -> dict[str, Any]:
    """The descriptor of some content, as JSON."""
    return {"mediaType": media_type, "digest": str(Digest.of(content)), "size": len(content), **more}


def image(config: bytes, *layers: bytes, **more: Any) -> bytes:
    """An image manifest."""
    return manifest(config=descriptor(config, CONFIG), layers=[descriptor(layer) for layer in layers], **more)


def index(*children: bytes, **more: Any) -> bytes:
    """An index of image manifests."""
    listed = [descriptor(child, OCI_MANIFEST) for child in children]
    return manifest(mediaType=OCI_INDEX, manifests=listed, **more)


def manifest(**body: Any) -> bytes:
    """A manifest with these fields."""
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, **body}).encode()


async def push(
    repository: HostedRepository, content: bytes, caller: Caller, reference: Reference = "1", *tags: str
) -> ManifestPushed:
    """PUTs a manifest."""
    media_type = json.loads(content).get("mediaType")
    return await repository.put_manifest(reference, tags, content, media_type, caller)


async def push_image(repository: HostedRepository, caller: Caller, tag: str, *blobs: bytes) -> ManifestPushed:
    """Uploads a config and layers, and PUTs their image."""
    for blob in blobs:
        await upload(repository, blob, caller)
    return await push(repository, image(*blobs), caller, tag)


async def read_blob(repository: HostedRepository, digest: Digest) -> bytes:
    """GETs a whole blob."""
    return await _read(await repository.blob(digest))


async def _read(content: Any) -> bytes:
    try:
        reader: BlobReader = content.reader
        return reader.pread(content.size or 0, 0)
    finally:
        content.close()
