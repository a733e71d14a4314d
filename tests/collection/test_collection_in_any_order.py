"""Pushes, mounts, deletions, retention and rounds of collection in any order, at the grain of single port calls.

A state machine over hosted content in memory. The pushes and deletions are the real ones (`mirror/hosting`), as the
threads of several workers run them; the dice decide after each call of a port which thread goes on (`turns.py`). Parts
of the disk cannot be read at times, or are damaged, clocks jump, and collectors die between any two steps. Everything
is drawn by Hypothesis, so a failure comes back as it was:

    @reproduce_failure(...), as the failure prints it, before `test_in_any_order`; or pytest --hypothesis-seed=…

`test_a_fault_is_found` plants faults, and expects each of them to be found.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any, Final

import pytest
import structlog
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from mirror.collection.blob_pass import BlobPass
from mirror.collection.collection_report import CollectionReport
from mirror.collection.collection_round import collection_round
from mirror.collection.grace_clock import GraceClock
from mirror.collection.marks import Marks
from mirror.collection.repository_pass import RepositoryPass
from mirror.errors import BlobUnknown, ManifestUnknown, MirrorError, RecordDamaged, StoreError
from mirror.hosting.deleting import Deleting
from mirror.hosting.links import Links
from mirror.hosting.parts import HostedParts
from mirror.hosting.placing import Placing
from mirror.hosting.pushing import ManifestPut, Pushing
from mirror.hosting.retiring import Retired, Retirement, Retiring, _Work
from mirror.intake.tag_history import TagHistories, TamperProofClock
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_INDEX, OCI_MANIFEST, read_manifest
from mirror.oci.reference import Repo
from mirror.policy.hosted.collection import COLLECTOR, CollectionRules, RegistryRules
from mirror.policy.hosted.immutability import ImmutableTags
from mirror.policy.hosted.push_checks import HostedRules
from mirror.policy.hosted.retention import RETENTION
from mirror.policy.hosted_records import LinkState
from mirror.ports import Expected, Version
from tests.support.hosted_blobs_suite import all_queued
from tests.support.hosted_world import Limited, MemoryFreezes
from tests.support.memory_hosted_records import MemoryHostedRecords
from tests.support.memory_hosting import MemoryContents, MemoryHostedBlobs
from tests.support.turns import Killed, Turns, taking_turns
from tests.support.unreliable_disk import UnreliableCatalog, UnreliableHostedRecords, UnreliableStore

_GRACE: Final = 100.0
_KEEP: Final = 700.0
_REPOS: Final = (Repo("corp", "team/app"), Repo("corp", "team/twin"))
_TAGS: Final = ("v1", "v2")
_RULES: Final = HostedRules(keep_deleted=_KEEP)

_LAYERS: Final = [f"layer {number}".encode() for number in range(4)]
_MANIFESTS: Final[dict[Digest, bytes]] = {}


def _manifest(kind: str, field: str, named: Sequence[tuple[str, Digest, int]], subject: Digest | None) -> Digest:
    listed = [{"mediaType": media, "digest": str(digest), "size": size} for media, digest, size in named]
    body: dict[str, object] = {"schemaVersion": 2, "mediaType": kind, field: listed}
    if subject:
        body["subject"] = {"mediaType": OCI_MANIFEST, "digest": str(subject), "size": len(_MANIFESTS[subject])}
    content = json.dumps(body).encode()
    _MANIFESTS[Digest.of(content)] = content
    return Digest.of(content)


def _image(*layers: int, subject: Digest | None = None) -> Digest:
    media = "application/vnd.oci.image.layer.v1.tar"
    named = [(media, Digest.of(_LAYERS[number]), len(_LAYERS[number])) for number in layers]
    return _manifest(OCI_MANIFEST, "layers", named, subject)


def _index(*children: Digest) -> Digest:
    return _manifest(OCI_INDEX, "manifests", [(OCI_MANIFEST, each, len(_MANIFESTS[each])) for each in children], None)


_A, _B = _image(0, 1), _image(1, 2)
_REFERRER: Final = _image(3, subject=_A)
_IMAGES: Final = (_A, _B, _REFERRER)
_INDEX: Final = _index(_REFERRER)
_ALL: Final = (*_IMAGES, _INDEX)
_CONTENT: Final = {**{Digest.of(layer): layer for layer in _LAYERS}, **_MANIFESTS}


def _blobs(manifest: Digest) -> list[Digest]:
    return [blob.digest for blob in read_manifest(_MANIFESTS[manifest]).blobs]


class TwoClocks:
    """The wall clock and the steady one. No two readings are the same, as on a real machine."""

    def __init__(self) -> None:
        self.passed = 0.0
        self.date = 1_000_000.0

    def steady(self) -> float:
        self.passed += 1e-5
        return self.passed

    def wall(self) -> float:
        return self.date + self.steady()


class Worker:
    """The parts of one process."""

    def __init__(self, disk: Any, turns: Turns, time: TwoClocks) -> None:
        """`disk` is a `MemoryDisk`, or has what that has."""
        contents = disk.contents()
        clocks = TamperProofClock(time.wall, time.steady)
        self.parts = HostedParts(
            taking_turns(contents, turns),
            taking_turns(disk.blobs, turns),
            taking_turns(disk.catalog, turns),
            taking_turns(disk.records, turns),
            TagHistories(disk.catalog, MemoryFreezes(), clocks),
            Limited(),
            ImmutableTags(),
            _GRACE,
        )
        self.links = Links(self.parts)
        placing = Placing(self.parts, self.links)
        self.deleting = Deleting(self.parts, self.links, placing)
        self.pushing = Pushing(self.parts, placing, self.deleting)
        self.retiring = Retiring(self.parts, placing)
        self.clock = GraceClock(time.wall, time.steady, _KEEP)


class MemoryDisk:
    """What all processes share."""

    def __init__(self) -> None:
        self.cache = UnreliableStore()
        self.catalog = UnreliableCatalog()
        self.blobs = MemoryHostedBlobs(self.cache)
        self.names = UnreliableStore()
        self.blobs.names = self.names  # type: ignore[misc]  # so that parts of it cannot be read
        self.records = UnreliableHostedRecords(self.catalog)

    def contents(self) -> Any:
        """Reads the cache and the hosted blobs."""
        return MemoryContents(self.cache, self.blobs)

    def sweep(self) -> None:
        """Nothing is ever forgotten."""


@dataclass(frozen=True)
class _Act:
    """Something that a client or an operator does: `kind` with an image in a repository."""

    kind: str
    repo: Repo
    image: Digest
    tag: str = "v1"


#: Acts that keep the manifest as it is.
_KEEPING: Final = ("upload", "delete tag", "delete blob")
_FURTHER: Final = ("delete at once", "delete tag", "undelete", "delete blob")
_ACTS: Final = st.builds(
    _Act,
    st.sampled_from(
        [
            "push",
            "push",
            "mount",
            "reserve",
            "manifest",
            "upload",
            "delete",
            "delete at once",
            "delete by rule",
            "delete tag",
            "undelete",
            "delete blob",
        ]
    ),
    st.sampled_from(_REPOS),
    st.sampled_from(_ALL),
    st.sampled_from(_TAGS),
)
#: Seconds that pass four times while other things happen.
_PASSING: Final = (0.0, 0.0, 40.0, 120.0)
#: After so many calls a collector dies; None: it does not.
_ROUNDS: Final = st.lists(st.none() | st.integers(0, 60), max_size=2)


class Hosting(RuleBasedStateMachine):
    """Two workers on one disk."""

    @initialize(seed=st.integers(0, 1 << 32), dangling=st.booleans())
    def begin(self, seed: int, dangling: bool) -> None:
        """An empty registry."""
        self.time, self.turns = TwoClocks(), Turns(Random(seed))
        self.disk = self.new_disk()
        self.collecting = CollectionRules(_GRACE, {"corp": RegistryRules(_KEEP, dangling)}, ("docker.io",))
        self.workers = [Worker(self.disk, self.turns, self.time) for _ in range(2)]
        #: Manifests that were pushed and not deleted, those that were deleted, and when what can be undeleted was.
        self.live: set[tuple[Repo, Digest]] = set()
        self.dead: set[tuple[Repo, Digest]] = set()
        self.kept: dict[tuple[Repo, Digest], float] = {}
        self.clock_jumped = self.collector_died = False

    def new_disk(self) -> Any:
        """An empty one."""
        return MemoryDisk()

    # ---------------------------------------------------------------------------------------------- what happens

    @rule(
        acts=st.lists(_ACTS, min_size=1, max_size=3), rounds=_ROUNDS, passing=st.sampled_from([0.0, 0.0, 40.0, 120.0])
    )
    def at_once(self, acts: list[_Act], rounds: list[int | None], passing: float) -> None:
        """Clients and collectors side by side, while time passes."""
        operations: list[Callable[[], None]] = [partial(self._do, act) for act in acts]
        operations += [partial(self._collect, steps) for steps in rounds]
        if passing:
            operations.append(partial(self._pass, passing))
        changed = {(act.repo, act.image) for act in acts if act.kind not in _KEEPING}
        self.live -= changed
        self.dead -= changed
        for name in changed:
            self.kept.pop(name, None)
        began = self.time.passed
        results = self.turns.run_all(operations)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, (MirrorError, Killed)):
                raise result
        for name in changed:
            self._learn(name, list(zip(acts, results, strict=False)), began)
        self._check()

    @rule(seconds=st.sampled_from([30.0, _GRACE + 1, 3 * _GRACE]), steps=st.none() | st.integers(0, 60))
    def later(self, seconds: float, steps: int | None) -> None:
        """Time passes, and a collector does a round."""
        self.time.passed += seconds
        [result] = self.turns.run_all([partial(self._collect, steps)])
        if isinstance(result, BaseException) and not isinstance(result, Killed):
            raise result
        self._check()

    @rule(seconds=st.sampled_from([-1e8, -250.0, 250.0, 1e8]))
    def clock_is_set(self, seconds: float) -> None:
        """By minutes or years."""
        self.time.date += seconds
        self.clock_jumped = True

    @rule(repo=st.sampled_from(_REPOS), what=st.sampled_from([*_TAGS, *_ALL]))
    def record_cannot_be_read(self, repo: Repo, what: str | Digest) -> None:
        """Of a tag or a manifest, until the disk recovers."""
        self.disk.catalog.unreadable.add((repo, what))

    @rule(image=st.sampled_from(_ALL))
    def bytes_cannot_be_read(self, image: Digest) -> None:
        """Of a manifest, until the disk recovers."""
        self.disk.names.unreadable.add(image)

    @rule(repo=st.sampled_from(_REPOS), image=st.sampled_from(_ALL))
    def record_is_damaged(self, repo: Repo, image: Digest) -> None:
        """Of a manifest, or of its deletion: it stays so until somebody writes it anew."""
        self.disk.catalog.damage(repo, image)
        self.disk.records.damage(repo, image)

    @rule()
    def disk_recovers(self) -> None:
        """Everything can be read again."""
        self.disk.catalog.unreadable.clear()
        self.disk.names.unreadable.clear()

    @rule()
    def a_worker_is_replaced(self) -> None:
        """The next process believes the wall clock."""
        self.workers[0] = Worker(self.disk, self.turns, self.time)

    @rule()
    def everything_unneeded_goes(self) -> None:
        """In the end, whatever was left half done."""
        self.disk_recovers()
        self.workers[0] = Worker(self.disk, self.turns, self.time)
        for _ in range(10):
            self.time.passed += _KEEP + 1
            self._collect(None)
        self.disk.sweep()
        self._check()
        disk = self.disk
        needed = {manifest for _, manifest in disk.catalog.linked()}
        for repo in _REPOS:
            named = {blob for manifest in disk.catalog.manifest_digests(repo) for blob in _blobs(manifest)}
            assert {each for each in disk.records.linked(repo) if self._serves(repo, each)} == named
            assert not list(disk.records.deleted_manifests(repo))
            needed |= named
        assert {info.digest for info in disk.names.walk()} == needed
        assert not all_queued(disk.blobs)

    # ---------------------------------------------------------------------------------------------- the operations

    def _collect(self, lives: int | None) -> None:
        """A round of one of the workers; it may be killed after so many calls."""
        worker = self.workers[lives is not None]
        if lives is not None:
            self.collector_died = True
            self.turns.die_after(lives)
        report = CollectionReport(worker.clock.read().later)
        for _ in collection_round(worker.parts, self.collecting, worker.clock.read, report):
            pass
        if report.complete and not report.unread:
            self.collector_died = False

    def _pass(self, seconds: float) -> None:
        for _ in range(4):
            self.turns.take()
            self.time.passed += seconds

    def _do(self, act: _Act) -> None:
        worker = self.workers[act.tag == "v2"]
        deleting = worker.deleting
        if act.kind == "delete":
            deleting.delete_manifest(act.repo, act.image, "user:a", keep=True)
        elif act.kind == "delete at once":
            deleting.delete_manifest(act.repo, act.image, "user:a", keep=False)
        elif act.kind == "delete by rule":
            _retire(worker, act)
        elif act.kind == "delete tag":
            deleting.delete_tag(act.repo, act.tag, "user:a", keep=True)
        elif act.kind == "undelete":
            deleting.undelete_manifest(act.repo, act.image, "user:a")
        elif act.kind == "delete blob":
            for blob in _blobs(act.image):
                with suppress(MirrorError):
                    deleting.delete_blob(act.repo, blob, "user:a")
        else:
            self._push(worker, act)

    def _push(self, worker: Worker, act: _Act) -> None:
        if act.kind != "manifest":
            for blob in _blobs(act.image):
                if not self._share(worker, act, blob):
                    worker.parts.blobs.put(blob, _CONTENT[blob])
                    worker.links.make(act.repo, blob, len(_CONTENT[blob]))
        if act.kind != "upload":
            put = ManifestPut(read_manifest(_MANIFESTS[act.image]), act.tag)
            worker.pushing.put(act.repo, _RULES, put, "user:a", may_overwrite=True)

    def _share(self, worker: Worker, act: _Act, blob: Digest) -> bool:
        """A mount from the other repository, or a reservation because of it. False: it must be uploaded."""
        other = next(repo for repo in _REPOS if repo != act.repo)
        if act.kind not in ("mount", "reserve"):
            return False
        try:
            worker.links.use(other, blob, "user:a")
            worker.parts.blobs.adopt(blob)
            if act.kind == "reserve":
                return worker.links.reserve(act.repo, blob, len(_CONTENT[blob]), "user:a")
            worker.links.make(act.repo, blob, len(_CONTENT[blob]))
        except BlobUnknown:
            return False
        return True

    # -------------------------------------------------------------------------------------------- what must hold

    def _learn(self, name: tuple[Repo, Digest], all_acts: list[tuple[_Act, object]], began: float) -> None:
        """What is certain about a manifest after these acts. Of acts that raced, nothing is known but the outcome."""
        own = [(act, result) for act, result in all_acts if (act.repo, act.image) == name and act.kind not in _KEEPING]
        done = [act for act, result in own if not isinstance(result, BaseException)]
        if not any(act.kind.startswith("delete") for act, _ in own) and done:
            self.live.add(name)
            for act in done:
                if act.kind != "undelete" and sum(other.repo == act.repo for other, _ in all_acts) == 1:
                    assert self.disk.catalog.pointed(act.repo, act.tag) == act.image, "a tag that was pushed is gone"
        elif done and len(own) == 1:
            self.dead.add(name)
            if done[0].kind in ("delete", "delete by rule"):
                self.kept[name] = began

    def _check(self) -> None:
        """Nothing went that something needs which stays."""
        linked, here = set(self.disk.catalog.linked()), {info.digest for info in self.disk.names.walk()}
        for repo, manifest in self.live - linked:
            assert manifest == _REFERRER, f"{repo}@{manifest} was pushed, and is gone"
            assert self.collecting.registries["corp"].collect_dangling
        self.live &= linked
        assert not self.dead & linked, "a deleted manifest is back"
        for repo, manifest in linked:
            self._check_whole(repo, manifest, here)
            if manifest == _INDEX and (repo, _REFERRER) not in linked and not self.collector_died:
                deletion = self.disk.records.deletion(repo, _REFERRER)
                lost = deletion is not None and deletion.by in (COLLECTOR, RETENTION)
                assert not lost, "an index lost its child to the collector, or to retention"
        for (repo, manifest), at in self.kept.items():
            if self.time.passed - at < _KEEP - 1 and not self.clock_jumped:
                assert self.disk.records.deletion(repo, manifest) is not None
                self._check_whole(repo, manifest, here, deleted=True)

    def _check_whole(self, repo: Repo, manifest: Digest, here: set[Digest], *, deleted: bool = False) -> None:
        assert manifest in here, f"{repo}@{manifest} lost its bytes"
        for blob in _blobs(manifest):
            assert blob in here, f"{repo}@{manifest} lost {blob}"
            # a client may delete a blob that only a deleted manifest names: the mark is enough to bring it back
            found = self.disk.records.link(repo, blob) if deleted else self._serves(repo, blob)
            assert found, f"{repo}@{manifest} lost its link to {blob}"

    def _serves(self, repo: Repo, blob: Digest) -> bool:
        found = self.disk.records.link(repo, blob)
        return found is not None and found.record.state is not LinkState.REMOVED

    def teardown(self) -> None:
        """Whatever happened, everything unneeded goes in the end."""
        if hasattr(self, "disk"):
            self.everything_unneeded_goes()


def _retire(worker: Worker, act: _Act) -> None:
    """Retention deletes an image with its tags, unless an index names it. Raises `ManifestUnknown` if it stays."""
    _retire_as_seen(worker, act, *_seen(worker, act))


def _seen(worker: Worker, act: _Act) -> tuple[Retirement, set[Digest]]:
    """What retention decides, and what was there then."""
    catalog, tags = worker.parts.catalog, {}
    found = catalog.manifest(act.repo, act.image)
    known = set(catalog.manifest_digests(act.repo))
    if found is None or (act.image == _REFERRER and _INDEX in known):
        raise ManifestUnknown("no rule names it")
    for name in catalog.tags(act.repo):
        tag = catalog.tag(act.repo, name)
        if tag is not None and tag.record.digest == act.image:
            tags[name] = tag.record.digest, tag.version
    return Retirement(tags, {act.image: found.version}), known


def _retire_as_seen(worker: Worker, act: _Act, retirement: Retirement, known: set[Digest]) -> None:
    retired = Retired()
    for _ in worker.retiring.steps(act.repo, retirement, known, retired, keep=True):
        pass
    if act.image not in retired.manifests:
        raise ManifestUnknown("it stays")


def test_in_any_order() -> None:
    """Nothing goes that something needs which stays; what was acknowledged holds; everything else goes in the end."""
    with structlog.testing.capture_logs():
        run_state_machine_as_test(Hosting, settings=settings(max_examples=150, stateful_step_count=15))


def _collect_without_version(self: MemoryHostedBlobs, digest: Digest, expect: Version) -> int:
    queued = self.queued(digest)
    if queued is not None:
        return _COLLECT(self, digest, queued.version)
    self.names.delete(digest)
    return 0


def _drop_link_without_version(
    self: MemoryHostedRecords, repo: Repo, digest: Digest, *, expect: Expected = None
) -> None:
    _DROP_LINK(self, repo, digest)


def _collect_what_was_just_queued(self: BlobPass, blob: tuple[Digest, int]) -> Any:
    """The walk began before it was queued."""
    waits = _WAIT(self, blob)
    queued = self._blobs.queued(blob[0])
    if queued:
        self._collect(Marks(), (blob[0], queued.version))
    return waits


def _unreadable_names_nothing(self: RepositoryPass, digest: Digest, media_type: str) -> Any:
    try:
        return _MANIFEST(self, digest, media_type)
    except StoreError:
        return None


def _damaged_is_absent(self: RepositoryPass, digest: Digest) -> Any:
    try:
        return self._parts.catalog.manifest(self._repo, digest)
    except RecordDamaged:
        return None


_COLLECT: Final = MemoryHostedBlobs.collect
_DROP_LINK: Final = MemoryHostedRecords.drop_link
_WAIT: Final = BlobPass._wait
_MANIFEST: Final = RepositoryPass._manifest


@pytest.mark.parametrize(
    ("owner", "name", "planted"),
    [
        (MemoryHostedBlobs, "collect", _collect_without_version),
        (MemoryHostedRecords, "drop_link", _drop_link_without_version),
        (BlobPass, "_wait", _collect_what_was_just_queued),
        (RepositoryPass, "_manifest", _unreadable_names_nothing),
        (RepositoryPass, "_live", _damaged_is_absent),
    ],
    ids=[
        "bytes without their version",
        "links without their version",
        "an older walk",
        "unreadable names nothing",
        "damaged is absent",
    ],
)
def test_a_fault_is_found(owner: type, name: str, planted: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine fails if collection or its records do not keep to the protocol: at a moment at which links or bytes
    are about to go, one of some hundred orders of a push and a round is enough.
    """
    monkeypatch.setattr(owner, name, planted)
    with structlog.testing.capture_logs(), pytest.raises(AssertionError):
        push_at_the_last_moments(500)


def _no_look_at_indexes(self: _Work, known: object) -> Iterator[None]:
    return iter(())


def _drop_in_any_version(self: UnreliableCatalog, repo: Repo, digest: Digest, *, expect: Expected = None) -> None:
    _DROP_MANIFEST(self, repo, digest)


_DROP_MANIFEST: Final = UnreliableCatalog.drop_manifest


@pytest.mark.parametrize(
    ("owner", "name", "planted"),
    [(_Work, "look_for_indexes", _no_look_at_indexes), (UnreliableCatalog, "drop_manifest", _drop_in_any_version)],
    ids=["no look at new indexes", "manifests without their version"],
)
def test_a_fault_of_retention_is_found(
    owner: type, name: str, planted: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of some hundred orders of a push and a deletion by rule is enough."""
    with structlog.testing.capture_logs():
        _push_while_it_goes(50)
        monkeypatch.setattr(owner, name, planted)
        with pytest.raises(AssertionError):
            _push_while_it_goes(1000)


def _push_while_it_goes(orders: int) -> None:
    """An image goes by a rule; at the same time it is pushed again, or an index that names it."""
    repo = _REPOS[0]
    for seed in range(orders):
        machine = Hosting()
        machine.begin(seed=seed, dangling=False)
        machine.at_once(acts=[_Act("push", repo, _REFERRER)], rounds=[], passing=0.0)
        goes, pushed = _Act("delete by rule", repo, _REFERRER), _Act("push", repo, _INDEX if seed % 2 else _REFERRER)
        [seen] = machine.turns.run_all([partial(_seen, machine.workers[0], goes)])
        assert isinstance(seen, tuple)
        results = machine.turns.run_all(
            [partial(_retire_as_seen, machine.workers[0], goes, *seen), partial(machine._do, pushed)]
        )
        here = {image for _, image in machine.disk.catalog.linked()}
        assert isinstance(results[1], BaseException) or pushed.image in here, "what was pushed is gone"
        assert _INDEX not in here or _REFERRER in here, "an index lost its child"


def test_no_fault_is_found_at_the_last_moment() -> None:
    """As things are."""
    with structlog.testing.capture_logs():
        push_at_the_last_moments(25)


def push_at_the_last_moments(orders: int, hosting: type[Hosting] = Hosting) -> None:
    """An image comes while what it needs is about to go, in so many orders."""
    for seed in range(orders):
        for rounds_before in range(4):
            _push_at_the_last_moment(hosting(), seed, rounds_before)


def _push_at_the_last_moment(machine: Hosting, seed: int, rounds_before: int) -> None:
    """Layers were uploaded, and waited for so many rounds; now their image comes. Later it cannot be read, or its
    record is damaged.
    """
    machine.begin(seed=seed, dangling=False)
    machine.at_once(acts=[_Act("upload", _REPOS[0], _A)], rounds=[], passing=0.0)
    for _ in range(rounds_before):
        machine.later(seconds=_GRACE + 1, steps=None)
    machine.time.passed += _GRACE + 1
    machine.at_once(acts=[_Act("push", _REPOS[0], _A)], rounds=[None, None], passing=0.0)
    if seed % 2:
        machine.record_is_damaged(repo=_REPOS[0], image=_A)
    else:
        machine.bytes_cannot_be_read(image=_A)
    for _ in range(4):
        machine.later(seconds=_GRACE + 1, steps=None)
    machine.teardown()
