"""Immutable tags, pushes, deletions and retention in any order, at the grain of single port calls.

The pushes and deletions are the real ones, as the threads of several workers run them; the dice decide after each call
of a port which thread goes on (`turns.py`), and some threads die in the middle. Nobody uses force. So a tag that was
once acknowledged points to that image for ever, and the image stays whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any, Final

import pytest
import structlog
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from mirror.errors import MirrorError, TagImmutable
from mirror.hosting.immutable_images import ImmutableImages
from mirror.hosting.placing import Placing
from mirror.hosting.pushing import ManifestPut
from mirror.hosting.retiring import Retired, Retirement, Retiring
from mirror.oci.digest import Digest
from mirror.oci.manifest import read_manifest
from mirror.policy.hosted.immutability import ImmutableRule, ImmutableTags
from mirror.policy.hosted.push_checks import HostedRules
from mirror.policy.records import TagRecord
from mirror.repository.hosted import HostedVerbs
from tests.support.hosted_world import TEAM, HostedWorld, image, index
from tests.support.turns import Killed, Turns, taking_turns

_LAYERS: Final = (b"{}", b"first", b"second")
_A, _B = image(b"{}", b"first"), image(b"{}", b"second")
_INDEX: Final = index(_A, _B)
#: A child may be two steps away.
_NESTED: Final = index(_INDEX)
_CONTENTS: Final = {"a": _A, "b": _B, "index": _INDEX, "nested": _NESTED}


@dataclass(frozen=True, slots=True)
class _Act:
    """What one worker does. It dies after so many calls; None: it does not."""

    kind: str
    content: str
    tag: str
    lives: int | None


#: Those that race most often come more often.
_KINDS: Final = ("push", "push", "push", "delete", "delete", "delete at once", "delete tag", "undelete", "untag")


def _acts(*kinds: str) -> st.SearchStrategy[_Act]:
    return st.builds(
        _Act,
        st.sampled_from(kinds),
        st.sampled_from([*_CONTENTS]),
        st.sampled_from(["v1", "v2", "latest"]),
        st.sampled_from([None, None, None, None, 5, 20, 40]),
    )


class _Story:
    """One registry, and what was acknowledged so far."""

    def __init__(self, world: HostedWorld, seed: int) -> None:
        self.turns = Turns(Random(seed))
        self.world = world
        world.immutable = ImmutableTags({"corp": [ImmutableRule(tags=("v*",))]})
        self.catalog = world.catalog
        world.catalog, world.records, world.blobs = (
            taking_turns(port, self.turns) for port in (world.catalog, world.records, world.blobs)
        )
        #: What immutable tags point to, as clients know it.
        self.known: dict[str, str] = {}
        verbs = world.verbs()
        for layer in _LAYERS:
            verbs.parts.blobs.put(Digest.of(layer), layer)
            verbs.links.make(TEAM, Digest.of(layer), len(layer))
        for name in _CONTENTS:
            self._push(verbs, name)

    def tell(self, acts: list[_Act]) -> None:
        """These acts side by side."""
        self.world.clock.time += 1
        acknowledged: list[tuple[str, str]] = []
        operations = [partial(self._do, act, acknowledged) for act in acts]
        for result in self.turns.run_all(operations):
            if isinstance(result, BaseException) and not isinstance(result, (MirrorError, Killed)):
                raise result
        for tag, name in acknowledged:
            assert self.known.setdefault(tag, name) == name, f"{tag} has moved"
        for tag, name in self.known.items():
            self._check(tag, name)

    def _do(self, act: _Act, acknowledged: list[tuple[str, str]]) -> None:
        if act.lives is not None:
            self.turns.die_after(act.lives)
        verbs, digest = self.world.verbs(), Digest.of(_CONTENTS[act.content])
        if act.kind == "push":
            self._push(verbs, act.content, act.tag)
            if act.tag.startswith("v"):
                acknowledged.append((act.tag, act.content))
        elif act.kind.startswith("delete tag"):
            verbs.deleting.delete_tag(TEAM, act.tag, "user:a", keep=True)
        elif act.kind.startswith("delete"):
            verbs.deleting.delete_manifest(TEAM, digest, "user:a", keep=act.kind == "delete")
        elif act.kind == "retire":
            self._retire(verbs, digest)
        elif act.kind == "undelete":
            verbs.deleting.undelete_manifest(TEAM, digest, "user:a")
        else:
            verbs.deleting.undelete_tag(TEAM, act.tag, "user:a")

    def _push(self, verbs: HostedVerbs, name: str, *tags: str) -> None:
        put = ManifestPut(read_manifest(_CONTENTS[name]), Digest.of(_CONTENTS[name]), tags)
        verbs.pushing.put(TEAM, HostedRules(), put, "user:a", may_overwrite=True)

    def _retire(self, verbs: HostedVerbs, digest: Digest) -> None:
        """As a round of retention does whose rules delete an image, and the indexes that name it."""
        parts = verbs.parts
        try:
            ImmutableImages(parts).check_deletion(TEAM, [digest])
        except TagImmutable:
            return
        known = set(parts.catalog.manifest_digests(TEAM))
        going = [each for each in reversed(_CONTENTS.values()) if digest in _reached(each)]
        found = {each: parts.catalog.manifest(TEAM, each) for each in map(Digest.of, going)}
        tags = {}
        for name in parts.catalog.tags(TEAM):
            tag = parts.catalog.tag(TEAM, name)
            if tag is not None and tag.record.digest in found:
                if parts.immutable.rule(TEAM, name):
                    return
                tags[name] = tag.record.digest, tag.version
        batch = Retirement(
            tags,
            {each: manifest.version for each, manifest in found.items() if manifest is not None},
            {Digest.of(each): [child.digest for child in read_manifest(each).manifests] for each in going},
        )
        steps = Retiring(parts, Placing(parts, verbs.links)).steps(TEAM, batch, known, Retired(), keep=True)
        for _ in steps:
            self.turns.take()

    def _check(self, tag: str, name: str) -> None:
        """The tag points where it did, and its image is whole."""
        record: TagRecord | None = self.catalog.get_tag(TEAM, tag)
        assert record is not None, f"{tag} is gone"
        assert record.digest == Digest.of(_CONTENTS[name]), f"{tag} has moved"
        waiting = [record.digest]
        while waiting:
            digest = waiting.pop()
            assert self.catalog.get_manifest(TEAM, digest) is not None, f"{tag} lost {digest}"
            [content] = [each for each in _CONTENTS.values() if Digest.of(each) == digest]
            waiting += [child.digest for child in read_manifest(content).manifests]


def _reached(content: bytes) -> set[Digest]:
    """A manifest, and what it names, however deep."""
    reached = {Digest.of(content)}
    for child in read_manifest(content).manifests:
        [inner] = [each for each in _CONTENTS.values() if Digest.of(each) == child.digest]
        reached |= _reached(inner)
    return reached


def _run(examples: int, acts: st.SearchStrategy[_Act], *phases: Phase) -> None:
    @settings(
        max_examples=examples,
        phases=phases or [*Phase],
        report_multiple_bugs=False,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(st.lists(st.lists(acts, min_size=1, max_size=4), min_size=1, max_size=4), st.integers(0, 1 << 32))
    def run(story: list[list[_Act]], seed: int) -> None:
        with HostedWorld() as world:
            told = _Story(world, seed)
            for acts in story:
                told.tell(acts)

    with structlog.testing.capture_logs():
        run()


def test_what_was_acknowledged_stays() -> None:
    """A tag, its image, and all that an index there names."""
    _run(300, _acts(*_KINDS, "retire", "retire"))


def _blind(self: Placing, *_: Any) -> bool:
    return False


def _shallow(self: ImmutableImages, repo: Any, tag: TagRecord, known: Any = ()) -> Any:
    return iter((tag.digest,))


@pytest.mark.parametrize(
    ("whole", "part", "fault"),
    [
        (Placing, "_is_marked", _blind),
        (ImmutableImages, "family", _shallow),
        (ImmutableImages, "check_move", lambda *_: None),
        (ImmutableImages, "check_deletion", lambda *_: None),
        (ImmutableImages, "check_tag_deletion", lambda *_: None),
    ],
)
def test_a_fault_is_found(monkeypatch: pytest.MonkeyPatch, whole: type, part: str, fault: Callable[..., Any]) -> None:
    """Without one of the parts, something that was acknowledged is lost."""
    monkeypatch.setattr(whole, part, fault)
    with pytest.raises(AssertionError, match=r"has moved|is gone|lost"):
        _run(6000, _acts(*_KINDS), Phase.generate)
