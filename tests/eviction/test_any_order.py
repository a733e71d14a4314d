"""Pulls, pins, evictions, purges and repairs of one store in any order, while parts of the disk cannot be read.

A state machine over a store, a catalog and an index in memory. Everything that it does is drawn by Hypothesis, the
order of what happens at once too (`scripted_loop.py`), so a failure comes back as it was, and shrinks:

    @reproduce_failure(...), as the failure prints it, before `test_in_any_order`; or pytest --hypothesis-seed=…
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import Any, Final, cast

import structlog
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from mirror.errors import (
    ImageProtected,
    IndexUnavailable,
    ManifestUnknown,
    MirrorError,
    StoreError,
    StoreFull,
    UpstreamError,
    UpstreamUnavailable,
)
from mirror.eviction.pinned_images import PinnedContent
from mirror.eviction.purge import Purge
from mirror.eviction.reconcile import reconcile
from mirror.eviction.shared_rebuild import ensure
from mirror.fills.filler import Filler
from mirror.fills.flights import Flights
from mirror.graph.references import ReferenceReader
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_INDEX, OCI_MANIFEST, read_manifest
from mirror.oci.reference import Repo
from mirror.policy.eviction import Watermarks
from mirror.policy.image_names import Image
from mirror.policy.records import Freeze, ManifestRecord, Pin, References, TagRecord
from mirror.ports import Body, ContentIndex
from mirror.values.sizes import Capacity
from tests.support.clock import Clock
from tests.support.eviction_parts import make_eviction
from tests.support.following import read_to_end
from tests.support.free_locks import FreeLocks
from tests.support.memory_index import MemoryIndex
from tests.support.scripted_loop import ScriptedLoop
from tests.support.unreliable_disk import UnreliableCatalog, UnreliableFreezes, UnreliablePins, UnreliableStore

_REPOS: Final = (Repo("docker.io", "library/app"), Repo("docker.io", "team/twin"))
_TAGS: Final = ("v1", "v2")
_CAPACITIES: Final = (3000, 5000, 50_000)

_SIZES: Final = (300, 200, 400, 100, 250)
_LAYERS: Final = [f"layer {number} ".encode().ljust(size, b".") for number, size in enumerate(_SIZES)]
_LAYER_DIGESTS: Final = {Digest.of(content): content for content in _LAYERS}
_MANIFESTS: Final[dict[Digest, bytes]] = {}


def _manifest(kind: str, field: str, named: Sequence[tuple[Digest, int]]) -> Digest:
    listed = [{"mediaType": "x/y", "digest": str(digest), "size": size} for digest, size in named]
    content = json.dumps({"schemaVersion": 2, "mediaType": kind, field: listed}).encode()
    digest = Digest.of(content)
    _MANIFESTS[digest] = content
    return digest


def _image(*layers: int) -> Digest:
    return _manifest(OCI_MANIFEST, "layers", [(Digest.of(_LAYERS[each]), len(_LAYERS[each])) for each in layers])


def _index(*children: Digest) -> Digest:
    return _manifest(OCI_INDEX, "manifests", [(child, len(_MANIFESTS[child])) for child in children])


_A, _B, _C, _D = _image(0, 1), _image(1, 2), _image(2, 3), _image(4)
#: Images that share layers, and indexes that share images.
_IMAGES: Final = (_A, _B, _C, _D, _index(_A, _C), _index(_C, _D))
_REFERENCES: Final = {digest: References.of(read_manifest(content)) for digest, content in _MANIFESTS.items()}


def _children(manifest: Digest) -> set[Digest]:
    names = _REFERENCES[manifest]
    return {*names.manifests, *names.blobs}


class _Faults:
    """What may be wrong with the bytes that upstream sends."""

    WHOLE = "whole"
    CUT = "cut once"
    WRONG = "wrong bytes"
    AWAY = "away"


class _ScriptedBody:
    """A `Body` of given bytes; `cut` after half of the rest."""

    def __init__(self, content: bytes, start: int, *, cut: bool) -> None:
        self.start = start
        self.size: int | None = len(content)
        self._content = content
        self._position = start
        self._end = start + (len(content) - start) // 2 if cut else len(content)
        self._cut = cut

    def readinto(self, buffer: memoryview) -> int:
        """In pieces of 64 bytes."""
        piece = self._content[self._position : min(self._end, self._position + 64)]
        if not piece and self._cut:
            raise UpstreamUnavailable("cut", upstream="docker.io")
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def abort(self) -> None:
        """Never blocked."""


class _UnreliableIndex:
    """An index that may not answer."""

    def __init__(self) -> None:
        self.real = MemoryIndex()
        self.down = False

    def __getattr__(self, name: str) -> Any:
        if self.down:
            raise IndexUnavailable("the index is down")
        return getattr(self.real, name)


@dataclass(frozen=True)
class _Before:
    """The state before some operations: what was present, what each manifest that counts named, what had to stay."""

    present: frozenset[Digest]
    linked: frozenset[tuple[Repo, Digest]]
    protected: frozenset[Digest]


class _Store(RuleBasedStateMachine):
    """One process over one store. `restart` makes the next process."""

    @initialize(
        seed=st.integers(0, 1 << 32),
        capacity=st.sampled_from(_CAPACITIES),
        pulled=st.lists(
            st.tuples(st.sampled_from(_REPOS), st.sampled_from(_TAGS), st.sampled_from(_IMAGES)), max_size=6
        ),
    )
    def begin(self, seed: int, capacity: int, pulled: list[tuple[Repo, str, Digest]]) -> None:
        """A store of so many bytes, with the images that were pulled before."""
        self.loop = ScriptedLoop(Random(seed))
        self.capacity = capacity
        self.clock = Clock(1_000_000.0)
        self.store, self.catalog = UnreliableStore(), UnreliableCatalog()
        self.pins, self.freezes = UnreliablePins(), UnreliableFreezes()
        self.unreliable_index = _UnreliableIndex()
        self.index = cast(ContentIndex, self.unreliable_index)
        self._start()
        for repo, tag, image in pulled:
            self._act(self._pull(repo, tag, image, []))

    def _start(self) -> None:
        self.turn, self.rebuild_locks = asyncio.Lock(), FreeLocks()
        references = ReferenceReader(self.store, self.catalog)
        pinned = PinnedContent(
            self.catalog, self.pins, (), references, frozen=self.freezes.look, answer=self._answer_of_tag
        )
        parts = make_eviction(
            self.store,
            self.catalog,
            self.index,
            Watermarks(Capacity(bytes=self.capacity), 0.9, 0.6, reserve=0),
            exclusive=lambda: _locked(self.turn),
            protected=lambda: self.flights.digests(),
            pinned=pinned.digests,
            rebuild=lambda: ensure(
                self.store, self.catalog, self.index, try_hold=self.rebuild_locks.try_hold, sleep=_no_sleep
            ),
            now=self.clock,
        )
        self.space, self.rounds, self.write_behind = parts.space, parts.rounds, parts.write_behind
        self.flights = Flights(
            Filler(
                self.store,
                self.space,
                cast(Any, None),
                published=lambda info, flight: self.write_behind.record_blob(info),
                patience=0.0,
                sleep=_no_sleep,
                jitter=lambda: 0.5,
                clock=self.clock,
            )
        )
        self.purge_image = Purge(self.store, self.catalog, self.pins, (), self.freezes, self.index, parts.evictor)

    def teardown(self) -> None:
        """Nothing is left running."""
        if hasattr(self, "loop"):
            self.loop.close()

    # ---------------------------------------------------------------------------------------------- what happens

    @rule(
        repo=st.sampled_from(_REPOS),
        tag=st.sampled_from(_TAGS) | st.none(),
        image=st.sampled_from(_IMAGES),
        faults=st.lists(st.sampled_from([_Faults.WHOLE, _Faults.CUT, _Faults.WRONG, _Faults.AWAY]), max_size=4),
    )
    def pull(self, repo: Repo, tag: str | None, image: Digest, faults: list[str]) -> None:
        """A client pulls by tag or by digest; each layer meets its own fault, or none."""
        self._act(self._pull(repo, tag, image, faults))

    @rule(
        repo=st.sampled_from(_REPOS),
        tag=st.sampled_from(_TAGS) | st.none(),
        image=st.sampled_from(_IMAGES),
        number=st.integers(0, 20),
    )
    def pull_and_purge(self, repo: Repo, tag: str | None, image: Digest, number: int) -> None:
        """At once, in any order of their steps."""
        self._act(self._pull(repo, tag, image, []), self._purge(number))

    @rule(repo=st.sampled_from(_REPOS), tag=st.sampled_from(_TAGS), image=st.sampled_from(_IMAGES))
    def pull_and_collect(self, repo: Repo, tag: str, image: Digest) -> None:
        """At once, in any order of their steps."""
        self._act(self._pull(repo, tag, image, []), self._dropping(self.space.collect()))

    @rule(number=st.integers(0, 20))
    def purge(self, number: int) -> None:
        """An operator purges an image."""
        self._act(self._purge(number))

    @rule()
    def collect(self) -> None:
        """Down to the low water."""
        self._act(self._dropping(self.space.collect()))

    @rule(size=st.integers(1, 3000))
    def make_room(self, size: int) -> None:
        """As after a write that found the disk full."""
        self._act(self._dropping(self.space.make_room(size)))

    @rule(seconds=st.sampled_from([1.0, 90.0, 4000.0]))
    def round(self, seconds: float) -> None:
        """Time passes, and the process does its round: it may rebuild the index, and evict."""
        self.clock.time += seconds
        self._act(self._dropping(self.rounds.tick()))

    @rule(image=st.sampled_from(_IMAGES))
    def use(self, image: Digest) -> None:
        """A hit."""
        self.write_behind.touch(image)
        self.clock.time += 1.0

    @rule(repo=st.sampled_from(_REPOS), what=st.sampled_from([*_TAGS, *_IMAGES]))
    def pin(self, repo: Repo, what: str | Digest) -> None:
        """Before or after the pull."""
        self.pins.put(Pin(repo, what, "a test", self.clock()))

    @rule(repo=st.sampled_from(_REPOS), what=st.sampled_from([*_TAGS, *_IMAGES]))
    def unpin(self, repo: Repo, what: str | Digest) -> None:
        """If it was pinned."""
        self.pins.drop(repo, what)

    @rule(repo=st.sampled_from(_REPOS), tag=st.sampled_from(_TAGS))
    def freeze(self, repo: Repo, tag: str) -> None:
        """At what the tag points to now."""
        digest = self.catalog.pointed(repo, tag)
        if digest is not None:
            size = len(_MANIFESTS[digest])
            self.freezes.put(Freeze(repo, tag, digest, _media_type(digest), size, "a test", self.clock()))

    @rule(repo=st.sampled_from(_REPOS), tag=st.sampled_from(_TAGS))
    def unfreeze(self, repo: Repo, tag: str) -> None:
        """If it was frozen."""
        self.freezes.drop(repo, tag)

    @rule(manifest=st.sampled_from(_IMAGES))
    def bytes_cannot_be_read(self, manifest: Digest) -> None:
        """Of a manifest, until the disk recovers."""
        self.store.unreadable.add(manifest)

    @rule(repo=st.sampled_from(_REPOS), what=st.sampled_from([*_TAGS, *_IMAGES]))
    def record_cannot_be_read(self, repo: Repo, what: str | Digest) -> None:
        """Of a tag or manifest, until the disk recovers."""
        self.catalog.unreadable.add((repo, what))

    @rule(pins=st.booleans(), freezes=st.booleans())
    def notes_cannot_be_read(self, pins: bool, freezes: bool) -> None:
        """Their folders, until the disk recovers."""
        self.pins.unreadable, self.freezes.unreadable = pins, freezes

    @rule()
    def disk_recovers(self) -> None:
        """Everything can be read again."""
        self.store.unreadable.clear()
        self.catalog.unreadable.clear()
        self.pins.unreadable = self.freezes.unreadable = False

    @rule(down=st.booleans())
    def index_answers_or_not(self, down: bool) -> None:
        """As Redis may."""
        self.unreliable_index.down = down

    @rule()
    def index_is_lost(self) -> None:
        """Emptied under the running mirror."""
        self.loop.run_all([self.unreliable_index.real.clear()])

    @rule()
    def restart(self) -> None:
        """The next process knows nothing from memory."""
        self._start()

    @rule()
    def reconcile(self) -> None:
        """Afterwards index and disk agree, if everything could be read."""
        self._act(self._reconcile())

    # -------------------------------------------------------------------------------------------- what must hold

    @invariant()
    def only_true_bytes(self) -> None:
        """What is in the store, and can be served, matches its digest."""
        if hasattr(self, "store"):
            assert all(digest.matches(content) for digest, content in self.store.content().items())

    @invariant()
    def nothing_stays_reserved(self) -> None:
        """Between two operations."""
        if hasattr(self, "space"):
            assert self.space.reserved == 0
            assert not self.flights.active()

    def _act(self, *operations: Coroutine[Any, Any, None]) -> None:
        """Runs the operations side by side. Then nothing is gone that a manifest names that stayed, or that had to
        stay for a pin or freeze, whether all that could be read meanwhile or not.
        """
        before = _Before(frozenset(self.store.content()), frozenset(self.catalog.linked()), self._protected())
        self.store.deleted.clear()
        self.catalog.dropped.clear()
        for result in self.loop.run_all(operations):
            if isinstance(result, BaseException):
                raise result
        lost = before.present - self.store.content().keys()
        for repo, manifest in before.linked - self.catalog.dropped:
            if manifest in before.present and manifest not in self.store.deleted:
                assert not _children(manifest) & lost, f"{repo}@{manifest} stays, and lost what it names"
        # a tag that was moved meanwhile no longer protects what it pointed to
        assert not before.protected & self._protected() & lost, "a pin or freeze did not hold"

    def _protected(self) -> frozenset[Digest]:
        """What pins and freezes keep, as the disk truly has it."""
        present = self.store.content().keys()
        freezes = {(freeze.repo, freeze.tag): freeze.digest for freeze in self.freezes.there()}
        roots = set(freezes.values())
        for pin in self.pins.there():
            if isinstance(pin.reference, Digest):
                roots.add(pin.reference)
            else:
                pointed = self.catalog.pointed(pin.repo, pin.reference)
                roots |= {digest for digest in (pointed, freezes.get((pin.repo, pin.reference))) if digest}
        kept: set[Digest] = set()
        while roots:
            digest = roots.pop()
            kept.add(digest)
            if digest in present and digest in _MANIFESTS:
                kept |= _children(digest)
                roots |= set(_REFERENCES[digest].manifests)
        return frozenset(kept)

    @property
    def _all_readable(self) -> bool:
        return not (self.store.unreadable or self.catalog.unreadable or self.pins.unreadable or self.freezes.unreadable)

    # ----------------------------------------------------------------------------------------------- operations

    async def _pull(self, repo: Repo, tag: str | None, image: Digest, faults: list[str]) -> None:
        try:
            freeze = self.freezes.get(repo, tag) if tag else None
            root = freeze.digest if freeze else image
            for manifest in (root, *_REFERENCES[root].manifests):
                await self._store_manifest(repo, manifest, tag if manifest == root and not freeze else None)
                for layer in _REFERENCES[manifest].blobs:
                    await self._pull_layer(layer, faults.pop() if faults else _Faults.WHOLE)
        except (UpstreamError, StoreFull):
            pass
        except StoreError:
            assert not self._all_readable

    async def _store_manifest(self, repo: Repo, digest: Digest, tag: str | None) -> None:
        content, kind = _MANIFESTS[digest], _media_type(digest)
        await asyncio.to_thread(self.store.put, digest, content)
        record = ManifestRecord(digest, kind, len(content), 0.0)
        await asyncio.to_thread(self.catalog.put_manifest, repo, record)
        await self.write_behind.record_references(_REFERENCES[digest], len(content))
        if tag:
            pointing = TagRecord(tag, digest, kind, len(content), self.clock())
            await asyncio.to_thread(self.catalog.put_tag, repo, pointing)
        self.write_behind.touch(digest)

    async def _pull_layer(self, digest: Digest, fault: str) -> None:
        left = [fault]

        @asynccontextmanager
        async def pull(start: int, stop: int | None = None) -> AsyncIterator[Body]:
            now = left.pop() if left else _Faults.WHOLE
            if now == _Faults.AWAY:
                raise UpstreamUnavailable("away", upstream="docker.io")
            content = _LAYER_DIGESTS[digest]
            yield _ScriptedBody(content[::-1] if now == _Faults.WRONG else content, start, cut=now == _Faults.CUT)

        flight = await self.flights.join(digest, pull, upstream="docker.io", size=len(_LAYER_DIGESTS[digest]))
        try:
            assert await read_to_end(flight) == _LAYER_DIGESTS[digest]
        finally:
            flight.leave()

    async def _purge(self, number: int) -> None:
        """The tag or manifest of this number among those that are here."""
        tags = [Image(repo, tag) for repo in _REPOS for tag in _TAGS if self.catalog.pointed(repo, tag)]
        images = [*tags, *(Image(repo, digest=digest) for repo, digest in self.catalog.linked())]
        if images:
            await self._dropping(self.purge_image(images[number % len(images)]))

    async def _dropping(self, operation: Coroutine[Any, Any, object]) -> None:
        """An operation may refuse, but not for the disk if that can be read."""
        try:
            await operation
        except (ImageProtected, ManifestUnknown, StoreFull):
            pass
        except StoreError:
            assert not self._all_readable

    async def _reconcile(self) -> None:
        try:
            await self.write_behind.flush()
            await reconcile(self.store, self.catalog, self.index, sleep=_no_sleep)
        except MirrorError:
            assert not self._all_readable or self.unreliable_index.down
            return
        present = self.store.content()
        index = self.unreliable_index.real
        assert {digest async for batch in index.digests() for digest in batch} == present.keys()
        assert (await index.usage()).bytes == sum(map(len, present.values()))
        linked = {manifest for _, manifest in self.catalog.linked() if manifest in present}
        successors = await index.successors(sorted(linked))
        assert {digest: {child.record.digest for child in named} for digest, named in successors.items()} == {
            digest: _children(digest) & present.keys() for digest in linked
        }

    def _answer_of_tag(self, repo: Repo, tag: str) -> Digest | None:
        freeze = self.freezes.get(repo, tag)
        record = self.catalog.get_tag(repo, tag)
        return freeze.digest if freeze else record.digest if record else None


def _media_type(digest: Digest) -> str:
    return OCI_INDEX if _REFERENCES[digest].manifests else OCI_MANIFEST


@asynccontextmanager
async def _locked(lock: asyncio.Lock) -> AsyncIterator[None]:
    async with lock:
        yield


async def _no_sleep(_seconds: float) -> None:
    await asyncio.sleep(0)


def test_in_any_order() -> None:
    """Nothing is served that is not what its digest names; nothing goes that a manifest that stays names, or that a pin
    or freeze keeps; index and disk agree after a reconciliation.
    """
    # what is logged would bury what was done
    with structlog.testing.capture_logs():
        run_state_machine_as_test(_Store, settings=settings(max_examples=300, stateful_step_count=25))
