"""What the collector deletes, or brings back, is announced like every other change."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import pytest

from mirror.errors import StoreError
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.events.changes import ChangeKind, HostedChange
from mirror.policy.hosted.collection import COLLECTOR
from mirror.ports import Announcement
from tests.support.collecting import APP, GRACE, CollectedWorld, image, index


class _Announcer:
    """Notes how each change ended."""

    def __init__(self) -> None:
        self.ended: list[tuple[ChangeKind, Digest | None, str]] = []

    def begin(self, kind: ChangeKind, repo: Repo, describe: Callable[[], HostedChange]) -> Announcement:
        change = describe()
        assert (change.repo, change.by) == (APP, COLLECTOR)
        return _Announced(self, change)


class _Announced:
    def __init__(self, announcer: _Announcer, change: HostedChange) -> None:
        self._announcer = announcer
        self._change = change
        self._over = False

    @contextmanager
    def turn(self) -> Iterator[None]:
        assert not self._over
        yield

    def _end(self, how: str) -> None:
        if not self._over:
            self._over = True
            self._announcer.ended.append((self._change.kind, self._change.digest, how))

    def done(self, before: Mapping[str, Digest] | None = None, written: Mapping[str, int] | None = None) -> None:
        self._end("done")

    def cancel(self) -> None:
        self._end("cancelled")

    def end(self, written: Collection[str] | None = None) -> None:
        self._end("looked at")


@pytest.fixture
def announcer() -> _Announcer:
    """It has heard nothing yet."""
    return _Announcer()


@pytest.fixture
def world(announcer: _Announcer) -> CollectedWorld:
    """A hosted registry that collects dangling referrers."""
    world = CollectedWorld(collect_dangling=True)
    world.parts = replace(world.parts, events=announcer)
    return world


def _referrer(world: CollectedWorld) -> Digest:
    world.parts, parts = replace(world.parts, events=CollectedWorld().parts.events), world.parts
    referrer = world.push(APP, image(world.upload(APP, b"sig"), subject=Digest.of(b"gone")))
    world.parts = parts
    return referrer


def test_a_referrer_that_goes_is_announced(world: CollectedWorld, announcer: _Announcer) -> None:
    """Once it is durable, and nothing names it."""
    referrer = _referrer(world)
    assert world.collect(pause=GRACE + 1).referrers == 1
    assert announcer.ended == [(ChangeKind.DELETE, referrer, "done")]


def test_one_that_is_brought_back_was_not_deleted(
    world: CollectedWorld, announcer: _Announcer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index came between the two looks."""
    referrer = _referrer(world)
    real = world.catalog.drop_manifest

    def push_index(repo: Repo, digest: Digest, **expect: object) -> None:
        parts, world.parts = world.parts, replace(world.parts, events=CollectedWorld().parts.events)
        world.push(APP, index(referrer), "all")
        world.parts = parts
        real(repo, digest, **expect)

    monkeypatch.setattr(world.catalog, "drop_manifest", push_index)
    world.collect(pause=GRACE + 1)
    assert world.catalog.get_manifest(APP, referrer) is not None
    assert announcer.ended == [(ChangeKind.DELETE, referrer, "cancelled")]


def test_one_that_cannot_be_dropped_is_looked_at(
    world: CollectedWorld, announcer: _Announcer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk has failed: whether the record is gone is what the records say."""
    referrer = _referrer(world)

    def fail(*_: object, **__: object) -> None:
        raise StoreError("the disk is gone")

    monkeypatch.setattr(world.catalog, "drop_manifest", fail)
    world.collect(pause=GRACE + 1)
    assert announcer.ended == [(ChangeKind.DELETE, referrer, "looked at")]


def test_one_that_comes_back_after_a_crash_is_announced(world: CollectedWorld, announcer: _Announcer) -> None:
    """Its deletion may have been reported when the next process looked."""
    referrer = _referrer(world)
    record = world.catalog.get_manifest(APP, referrer)
    assert record is not None
    parts, world.parts = world.parts, replace(world.parts, events=CollectedWorld().parts.events)
    world.push(APP, index(referrer), "all")
    world.parts = parts
    world.records.put_deleted_manifest(APP, replace(world.deletion(record), by=COLLECTOR))
    world.catalog.drop_manifest(APP, referrer)
    world.collect()
    assert world.catalog.get_manifest(APP, referrer) is not None
    assert announcer.ended == [(ChangeKind.UNDELETE, referrer, "looked at")]
