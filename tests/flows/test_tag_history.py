"""Tags that are remembered, frozen, held back: what the mirror answers when upstream says something else."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_MANIFEST
from mirror.oci.reference import Repo
from mirror.policy.history import MOST
from mirror.policy.records import Freeze
from tests.support.fake_registry import FakeRegistry, status
from tests.support.live_mirror import Clock, Got, LiveMirror, live_mirror

_APP = Repo("docker.io", "library/app")
_AT = "/v2/library/app/manifests"
_TAG = f"{_AT}/v1"
#: Seconds, as configured below: a tag is believed so long; a freeze is seen after so long; the minimum age.
_TTL, _LOOK, _DAY = 100, 3, 86400.0
_AGE = 3 * _DAY


def _route(**more: Any) -> list[dict[str, Any]]:
    return [{"match": "docker.io/**", "tag_ttl": _TTL, "stale_while_down": 30 * _DAY, **more}]


@pytest.fixture
async def mirror(registry: FakeRegistry, tmp_path: Path) -> AsyncIterator[LiveMirror]:
    """Without a minimum age."""
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, route=_route()) as running:
        yield running


@pytest.fixture
async def cautious(registry: FakeRegistry, tmp_path: Path) -> AsyncIterator[LiveMirror]:
    """Three days behind; `library/eager` takes new tags at once."""
    eager = {"match": "docker.io/library/eager", "tag_ttl": _TTL, "minimum_age": "3d", "minimum_age_new_tags": "serve"}
    route = [eager, *_route(minimum_age="3d")]
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, route=route) as running:
        yield running


def _push(registry: FakeRegistry, word: str, tag: str = "v1", name: str = "library/app") -> Digest:
    return registry.add_image(name, tag, [word.encode()])


async def _answers(mirror: LiveMirror, target: str = _TAG) -> str:
    """What GET and HEAD agree on: the digest, in this order and the other."""
    answers = [await mirror.ask(target, method=method) for method in ("HEAD", "GET", "HEAD")]
    assert {answer.status for answer in answers} == {200}, answers
    told = {
        tuple(answer.headers[name] for name in ("Docker-Content-Digest", "Content-Type", "Content-Length", "ETag"))
        for answer in answers
    }
    assert len(told) == 1, told
    return answers[0].headers["Docker-Content-Digest"]


async def _refused(mirror: LiveMirror, target: str = _TAG) -> Got:
    assert (await mirror.ask(target, method="HEAD")).status == 403
    answer = await mirror.ask(target)
    assert (answer.status, answer.code) == (403, "DENIED")
    return answer


def _history(mirror: LiveMirror, tag: str = "v1") -> list[tuple[str, float, float]]:
    seen = mirror.app.storage.catalog.get_history(_APP, tag)
    return [(str(one.digest), one.first_seen, one.last_seen) for one in seen]


def _block(folder: str) -> None:
    """Makes a file where a folder should be."""
    path = Path(folder)
    path.parent.mkdir(parents=True)
    path.write_text("")


def _freeze(mirror: LiveMirror, digest: Digest, tag: str = "v1", size: int | None = None) -> None:
    """What `mirror freeze` does, in this process; `until_seen` lets the time pass until it is noticed."""
    link = mirror.app.storage.catalog.get_manifest(_APP, digest)
    size = size if size is not None else link.size if link else 0
    mirror.app.storage.freezes.put(Freeze(_APP, tag, digest, OCI_MANIFEST, size, "", mirror.clock()))
    mirror.clock.forward(_LOOK)


def _unfreeze(mirror: LiveMirror, tag: str = "v1") -> None:
    assert mirror.app.storage.freezes.drop(_APP, tag)
    mirror.clock.forward(_LOOK)


# -------------------------------------------------------------------------------------------------- history


async def test_a_tag_that_moves_has_a_history(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Each digest once in the order of the moves, with the times that it was seen first and last; back again counts."""
    began, first = mirror.clock(), _push(registry, "first")
    await mirror.ask(_TAG, method="HEAD")
    assert _history(mirror) == [(str(first), began, began)]
    mirror.clock.forward(_TTL + 1)
    await mirror.ask(_TAG)
    second = _push(registry, "second")
    mirror.clock.forward(_TTL + 1)
    await mirror.ask(_TAG)
    _push(registry, "first")
    mirror.clock.forward(_TTL + 1)
    await mirror.ask(_TAG)
    later = [began + step * (_TTL + 1) for step in range(4)]
    assert _history(mirror) == [
        (str(first), began, later[1]),
        (str(second), later[2], later[2]),
        (str(first), later[3], later[3]),
    ]


async def test_confirming_writes_no_history(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Only a move is written down: the file is not touched when upstream says the same again."""
    _push(registry, "first")
    await mirror.ask(_TAG)
    file = Path(mirror.app.storage.layout.history(_APP)) / "v1"
    before = file.stat()
    for _ in range(3):
        mirror.clock.forward(_TTL + 1)
        assert (await mirror.ask(_TAG)).status == 200
    after = file.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert registry.count("manifests", "HEAD") == 4


async def test_a_history_outlives_its_tag(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """A tag that upstream drops keeps its history; when it comes back as something else, it has moved."""
    first = _push(registry, "first", "1.0.0")
    await mirror.ask(f"{_AT}/1.0.0")
    registry.drop_tag("library/app", "1.0.0")
    mirror.clock.forward(_TTL + 1)
    assert (await mirror.ask(f"{_AT}/1.0.0")).status == 404
    second = _push(registry, "second", "1.0.0")
    mirror.clock.forward(60)
    assert await _answers(mirror, f"{_AT}/1.0.0") == str(second)
    assert [digest for digest, _, _ in _history(mirror, "1.0.0")] == [str(first), str(second)]
    [moved] = mirror.events("version tag moved")
    assert (moved["was"], moved["now"]) == (str(first), str(second))


async def test_a_store_without_histories(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """What an older version left, or an operator deleted: the tag's record says what was known."""
    began, first = mirror.clock(), _push(registry, "first")
    await mirror.ask(_TAG)
    (Path(mirror.app.storage.layout.history(_APP)) / "v1").unlink()
    second = _push(registry, "second")
    mirror.clock.forward(_TTL + 1)
    await mirror.ask(_TAG)
    assert [(digest, at) for digest, at, _ in _history(mirror)] == [
        (str(first), began),
        (str(second), began + _TTL + 1),
    ]


async def test_a_crash_between_history_and_tag(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """The history was written, the tag was not: the next answer neither doubles nor loses anything."""
    first = _push(registry, "first")
    await mirror.ask(_TAG)
    record = mirror.app.storage.catalog.get_tag(_APP, "v1")
    assert record
    second = _push(registry, "second")
    mirror.clock.forward(_TTL + 1)
    await mirror.ask(_TAG)
    mirror.app.storage.catalog.put_tag(_APP, record)
    mirror.clock.forward(_LOOK)
    assert await _answers(mirror) == str(second)
    assert [digest for digest, _, _ in _history(mirror)] == [str(first), str(second)]


async def test_a_history_has_an_end(registry: FakeRegistry, cautious: LiveMirror) -> None:
    """The newest stay, and what is served, however often the tag is moved to push it out."""
    first = _push(registry, "first")
    await cautious.ask(_TAG, method="HEAD")
    cautious.clock.forward(_AGE)
    for number in range(MOST + 5):
        _push(registry, str(number))
        cautious.clock.forward(_TTL + 1)
        await cautious.ask(_TAG, method="HEAD")
    history = _history(cautious)
    assert len(history) == MOST + 1
    assert history[0][0] == await _answers(cautious) == str(first)


async def test_two_processes_write_one_history(registry: FakeRegistry, tmp_path: Path) -> None:
    """Two mirrors on one store hear of each move at the same time: nothing is doubled, nothing lost."""
    clock, upstreams, wanted = Clock(), {"docker.io": registry.url}, []
    async with (
        live_mirror(tmp_path / "shared", upstreams, clock=clock, route=_route()) as one,
        live_mirror(tmp_path / "shared", upstreams, clock=clock, route=_route()) as two,
    ):
        for number in range(8):
            wanted.append(str(_push(registry, str(number))))
            clock.forward(_TTL + 1)
            await asyncio.gather(*(mirror.ask(_TAG, method="HEAD") for mirror in (one, two) * 4))
        assert [digest for digest, _, _ in _history(one)] == wanted


async def test_a_disk_that_takes_no_history(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """A failing disk costs the history, not the pull."""
    first = _push(registry, "first")
    _block(mirror.app.storage.layout.history(_APP))
    assert await _answers(mirror) == str(first)
    assert mirror.events("store failed")


# ------------------------------------------------------------------------------------------------- versions


async def test_a_version_that_moves(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """A warning and a count by registry; a tag that is meant to move is an info and not counted."""
    for tag in ("1.2.3", "latest"):
        _push(registry, "first", tag)
        await mirror.ask(f"{_AT}/{tag}")
        _push(registry, "second", tag)
    name = b'mirror_version_tags_moved_total{upstream="docker.io"} '
    before = _count((await mirror.ask("/metrics")).body, name)
    mirror.clock.forward(_TTL + 1)
    for _ in range(2):
        for tag in ("1.2.3", "latest"):
            await mirror.ask(f"{_AT}/{tag}")
    [moved] = mirror.events("version tag moved")
    assert (moved["level"], moved["repository"], moved["tag"]) == ("warning", str(_APP), "1.2.3")
    assert moved["was"] != moved["now"]
    [other] = mirror.events("tag moved")
    assert (other["level"], other["tag"]) == ("info", "latest")
    assert _count((await mirror.ask("/metrics")).body, name) == before + 1


async def test_81_names_below_a_wildcard_are_no_labels(registry: FakeRegistry, tmp_path: Path) -> None:
    """Row 81: moves are counted by what is configured, not by the hosts that clients name."""
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url, "*.pkg.dev": {}}) as mirror:
        assert mirror.app.shared.label("docker.io") == "docker.io"
        assert mirror.app.shared.label("made-up.pkg.dev") == "*.pkg.dev"


def _count(text: bytes, name: bytes) -> float:
    return sum(float(line.removeprefix(name)) for line in text.splitlines() if line.startswith(name))


# -------------------------------------------------------------------------------------------------- freezes


async def test_frozen(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """A frozen tag is a plain hit whatever upstream says, who is not asked; log and header tell why."""
    first = _push(registry, "first")
    await mirror.ask(_TAG)
    _push(registry, "second")
    _freeze(mirror, first)
    mirror.clock.forward(10 * _TTL)
    registry.forget()
    assert await _answers(mirror) == str(first)
    for method in ("GET", "HEAD"):
        assert (await mirror.ask(_TAG, method=method)).cache == "hit; detail=frozen"
    assert not registry.requests
    assert mirror.events("request")[-1]["tag"] == "frozen"


async def test_unfrozen(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """It follows upstream again, at once if its time is over, and what happened meanwhile is one move."""
    first = _push(registry, "first")
    await mirror.ask(_TAG)
    _freeze(mirror, first)
    _push(registry, "second")
    mirror.clock.forward(_TTL)
    assert await _answers(mirror) == str(first)
    third = _push(registry, "third")
    _unfreeze(mirror)
    assert await _answers(mirror) == str(third)
    assert [digest for digest, _, _ in _history(mirror)] == [str(first), str(third)]


async def test_frozen_at_what_it_was(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Back to an older digest, which is here: upstream may be down, and nothing is stale."""
    first = _push(registry, "first")
    await mirror.ask(_TAG)
    second = _push(registry, "second")
    mirror.clock.forward(_TTL + 1)
    assert await _answers(mirror) == str(second)
    registry.stop()
    _freeze(mirror, first)
    mirror.clock.forward(300 * _DAY)
    assert await _answers(mirror) == str(first)
    answer = await mirror.ask(_TAG)
    assert "Warning" not in answer.headers
    assert not mirror.events("stale tag served")


async def test_frozen_while_stale(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """A freeze goes before a stale answer, also when the tag is unknown upstream; unfrozen, all is as before."""
    first = _push(registry, "first")
    await mirror.ask(_TAG)
    registry.fail("manifests", status(503), times=1000)
    mirror.clock.forward(_TTL + 1)
    assert "Warning" in (await mirror.ask(_TAG)).headers
    mirror.app.storage.freezes.put(Freeze(_APP, "v1", first, OCI_MANIFEST, 1, "", 0.0))
    mirror.clock.forward(6)
    assert (await mirror.ask(_TAG)).cache == "hit; detail=frozen"
    _unfreeze(mirror)
    assert "Warning" in (await mirror.ask(_TAG)).headers
    registry.heal()
    registry.drop_tag("library/app", "v1")
    mirror.clock.forward(6)
    assert (await mirror.ask(_TAG)).status == 404
    mirror.app.storage.freezes.put(Freeze(_APP, "v1", first, OCI_MANIFEST, 1, "", 0.0))
    # no 404 is remembered against it
    assert (await mirror.ask(_TAG)).cache == "hit; detail=frozen"


async def test_frozen_content_that_was_evicted(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """It is fetched by digest, whatever the tag says by now: a freeze keeps the name, not the bytes."""
    first = _push(registry, "first")
    size = len(registry.manifest("library/app", first))
    _push(registry, "second")
    _freeze(mirror, first, size=size)
    registry.forget()
    answer = await mirror.ask(_TAG)
    assert answer.headers["Docker-Content-Digest"] == str(first)
    assert answer.cache == "fwd=uri-miss; stored; detail=frozen"
    assert [request.path.rpartition("/")[2] for request in registry.of_kind("manifests")] == [str(first)]
    assert await _answers(mirror) == str(first)


async def test_frozen_content_that_is_gone(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Neither here nor upstream: 404 that says so, for GET and HEAD; never another digest."""
    _push(registry, "first")
    await mirror.ask(_TAG)
    _freeze(mirror, Digest.of(b"gone"))
    registry.forget()
    assert (await mirror.ask(_TAG, method="HEAD")).status == 404
    answer = await mirror.ask(_TAG)
    assert (answer.status, answer.code) == (404, "MANIFEST_UNKNOWN")
    assert b"frozen" in answer.body
    assert b"cannot be fetched any more" in answer.body
    assert not [request for request in registry.requests if request.path.endswith("/v1")]
    registry.stop()
    mirror.clock.forward(60)
    for method in ("GET", "HEAD"):
        assert (await mirror.ask(_TAG, method=method)).status == 503


async def test_conditional_requests(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Who has the frozen digest has it still; who has the newer one gets the frozen one."""
    first = _push(registry, "first")
    await mirror.ask(_TAG)
    second = _push(registry, "second")
    _freeze(mirror, first)
    for method in ("GET", "HEAD"):
        for digest, wanted in ((first, 304), (second, 200)):
            answer = await mirror.ask(_TAG, method=method, headers={"If-None-Match": f'"{digest}"'})
            assert answer.status == wanted
            assert answer.headers["Docker-Content-Digest"] == str(first)


async def test_other_tags_and_digests_are_free(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """A freeze is of one tag: others follow upstream, and digests are what they are."""
    first = _push(registry, "first")
    await mirror.ask(_TAG)
    _freeze(mirror, first)
    second = _push(registry, "second", "v2")
    assert await _answers(mirror, f"{_AT}/v2") == str(second)
    assert await _answers(mirror, f"{_AT}/{second}") == str(second)


async def test_two_processes_see_a_freeze(registry: FakeRegistry, tmp_path: Path) -> None:
    """Made beside two running mirrors, it is noticed by both within two seconds, and so is its end."""
    clock, upstreams = Clock(), {"docker.io": registry.url}
    async with (
        live_mirror(tmp_path / "shared", upstreams, clock=clock, route=_route()) as one,
        live_mirror(tmp_path / "shared", upstreams, clock=clock, route=_route()) as two,
    ):
        first = _push(registry, "first")
        await one.ask(_TAG)
        second = _push(registry, "second")
        clock.forward(_TTL + 1)
        for mirror in (one, two):
            assert await _answers(mirror) == str(second)
        one.app.storage.freezes.put(Freeze(_APP, "v1", first, OCI_MANIFEST, 1, "", 0.0))
        clock.forward(2.0)
        for mirror in (one, two):
            assert await _answers(mirror) == str(first)
        two.app.storage.freezes.drop(_APP, "v1")
        clock.forward(2.0)
        for mirror in (one, two):
            assert await _answers(mirror) == str(second)


async def test_a_freeze_that_cannot_be_read(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """The tag gives no answer at all, rather than a digest that somebody has ruled out."""
    first = _push(registry, "first")
    await mirror.ask(_TAG)
    _freeze(mirror, first)
    [file] = (mirror.root / "freezes").iterdir()
    file.write_bytes(b"{")
    for method in ("GET", "HEAD"):
        assert (await mirror.ask(_TAG, method=method)).status == 503
    assert await _answers(mirror, f"{_AT}/{first}") == str(first)
    _unfreeze(mirror)
    assert await _answers(mirror) == str(first)


# ---------------------------------------------------------------------------------------------- minimum age


async def test_a_move_waits(registry: FakeRegistry, cautious: LiveMirror) -> None:
    """The older digest is served until the newer one was known for three days; both by digest all the time."""
    first = _push(registry, "first")
    await _refused(cautious)
    cautious.clock.forward(_AGE + 1)
    assert await _answers(cautious) == str(first)
    second = _push(registry, "second")
    cautious.clock.forward(_TTL + 1)
    registry.forget()
    answer = await cautious.ask(_TAG)
    assert answer.headers["Docker-Content-Digest"] == str(first)
    assert answer.cache == "fwd=stale; fwd-status=200; detail=minimum-age"
    # upstream was asked by HEAD, and nothing of the new one was fetched
    assert [request.method for request in registry.of_kind("manifests")] == ["HEAD"]
    assert cautious.events("request")[-1]["tag"] == "minimum-age"
    assert [digest for digest, _, _ in _history(cautious)] == [str(first), str(second)]
    assert await _answers(cautious, f"{_AT}/{second}") == str(second)
    cautious.clock.forward(_AGE - 60)
    assert await _answers(cautious) == str(first)
    cautious.clock.forward(61)
    assert await _answers(cautious) == str(second)
    assert "detail" not in (await cautious.ask(_TAG)).cache


async def test_a_new_tag_is_refused(registry: FakeRegistry, cautious: LiveMirror) -> None:
    """Without an older digest there is nothing to serve: the error says what, why and until when; upstream is asked
    no more often than otherwise.
    """
    first = _push(registry, "first")
    said = json.loads((await _refused(cautious)).body)["errors"][0]["message"]
    assert str(first) in said
    assert "minimum_age" in said
    assert time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(cautious.clock() + _AGE)) in said
    for _ in range(3):
        await _refused(cautious)
    assert registry.count("manifests") == 1


async def test_a_new_tag_is_served_where_that_is_wanted(registry: FakeRegistry, cautious: LiveMirror) -> None:
    """The first digest ever seen of a tag counts as old enough, and stays until the next one is."""
    first = _push(registry, "first", name="library/eager")
    target = "/v2/library/eager/manifests/v1"
    assert await _answers(cautious, target) == str(first)
    second = _push(registry, "second", name="library/eager")
    cautious.clock.forward(_TTL + 1)
    assert await _answers(cautious, target) == str(first)
    cautious.clock.forward(_AGE)
    assert await _answers(cautious, target) == str(second)


async def test_another_name_for_what_is_known(registry: FakeRegistry, cautious: LiveMirror) -> None:
    """A new tag of a digest that the repository has had for three days is no news."""
    first = _push(registry, "first")
    assert await _answers(cautious, f"{_AT}/{first}") == str(first)
    cautious.clock.forward(_AGE - 60)
    await _refused(cautious)
    cautious.clock.forward(61)
    assert await _answers(cautious) == str(first)


async def test_taken_back(registry: FakeRegistry, cautious: LiveMirror) -> None:
    """A release that upstream takes back in time is never served."""
    first = _push(registry, "first")
    await _refused(cautious)
    cautious.clock.forward(_AGE)
    _push(registry, "poisoned")
    await _answers(cautious)
    _push(registry, "first")
    for _ in range(10):
        cautious.clock.forward(_DAY)
        assert await _answers(cautious) == str(first)


async def test_held_back_content_that_is_gone(registry: FakeRegistry, cautious: LiveMirror) -> None:
    """The older digest was never fetched and upstream has dropped it: 404 that says so, and not the newer one."""
    registry.add_manifest("library/app", b'{"schemaVersion": 2, "layers": []}', OCI_MANIFEST, "v1")
    await _refused(cautious)
    cautious.clock.forward(_AGE)
    _push(registry, "second")
    registry.fail("manifests", lambda request, answer: answer(request))
    assert (await cautious.ask(_TAG, method="HEAD")).status == 200
    registry.fail("manifests", status(404), times=2)
    answer = await cautious.ask(_TAG)
    assert (answer.status, answer.code) == (404, "MANIFEST_UNKNOWN")
    assert b"minimum_age" in answer.body
    assert (await cautious.ask(_TAG, method="HEAD")).status == 404


async def test_held_back_while_upstream_is_down(registry: FakeRegistry, cautious: LiveMirror) -> None:
    """The older digest is served stale, and the newer one grows old meanwhile."""
    first = _push(registry, "first")
    await _refused(cautious)
    cautious.clock.forward(_AGE)
    assert await _answers(cautious) == str(first)
    second = _push(registry, "second")
    cautious.clock.forward(_TTL + 1)
    assert await _answers(cautious) == str(first)
    assert await _answers(cautious, f"{_AT}/{second}") == str(second)
    registry.stop()
    cautious.clock.forward(_TTL + 1)
    assert await _answers(cautious) == str(first)
    assert "Warning" in (await cautious.ask(_TAG)).headers
    cautious.clock.forward(_AGE)
    assert await _answers(cautious) == str(second)


async def test_a_freeze_goes_before_the_minimum_age(registry: FakeRegistry, cautious: LiveMirror) -> None:
    """Who freezes a tag at a digest has looked at it."""
    first = _push(registry, "first")
    await _refused(cautious)
    _freeze(cautious, first, size=len(registry.manifest("library/app", first)))
    assert await _answers(cautious) == str(first)
    _unfreeze(cautious)
    await _refused(cautious)


@pytest.mark.parametrize("ahead", [365 * _DAY, -5 * _DAY])
async def test_43_a_clock_that_is_set_opens_nothing(registry: FakeRegistry, cautious: LiveMirror, ahead: float) -> None:
    """Row 43: ahead or back, and there and back again; only time that passes makes a digest older."""
    first = _push(registry, "first")
    await _refused(cautious)
    cautious.clock.forward(10 * _DAY)
    second = _push(registry, "second")
    assert await _answers(cautious) == str(first)
    cautious.clock.set(ahead)
    assert await _answers(cautious) == str(first)
    third = _push(registry, "third")
    cautious.clock.forward(_TTL + 1)
    await cautious.ask(f"{_AT}/{third}")
    assert await _answers(cautious) == str(first)
    cautious.clock.set(-ahead)
    cautious.clock.forward(_TTL + 1)
    assert await _answers(cautious) == str(first)
    assert [digest for digest, _, _ in _history(cautious)] == [str(first), str(second), str(third)]
    assert len(cautious.events("clock jumped")) == 1
    cautious.clock.forward(370 * _DAY)
    assert await _answers(cautious) == str(third)


async def test_43_a_clock_before_everything(registry: FakeRegistry, cautious: LiveMirror) -> None:
    """Row 43: when all that is known lies in the future nothing is old enough; put right, all is as before."""
    first = _push(registry, "first")
    await _refused(cautious)
    cautious.clock.forward(10 * _DAY)
    assert await _answers(cautious) == str(first)
    cautious.clock.set(-365 * _DAY)
    await _refused(cautious)
    cautious.clock.set(365 * _DAY)
    assert await _answers(cautious) == str(first)


async def test_a_process_that_begins_under_another_clock(registry: FakeRegistry, tmp_path: Path) -> None:
    """What was written down by a clock that was ahead lies in the future, and is not old."""
    clock, upstreams = Clock(), {"docker.io": registry.url}
    route = _route(minimum_age="3d")
    first = _push(registry, "first")
    async with live_mirror(tmp_path / "next", upstreams, clock=clock, route=route) as mirror:
        await _refused(mirror)
        clock.forward(_AGE)
        assert await _answers(mirror) == str(first)
    clock.set(365 * _DAY)
    async with live_mirror(tmp_path / "next", upstreams, clock=clock, route=route) as mirror:
        _push(registry, "second")
        assert await _answers(mirror) == str(first)
    clock.set(-365 * _DAY)
    async with live_mirror(tmp_path / "next", upstreams, clock=clock, route=route) as mirror:
        clock.forward(10 * _DAY)
        assert await _answers(mirror) == str(first)


async def test_a_history_that_was_damaged(registry: FakeRegistry, cautious: LiveMirror) -> None:
    """Nothing is known any more, so nothing is old enough but what the repository has had for long."""
    first = _push(registry, "first")
    await _refused(cautious)
    await cautious.ask(f"{_AT}/{first}")
    cautious.clock.forward(_AGE)
    assert await _answers(cautious) == str(first)
    second = _push(registry, "second")
    file = Path(cautious.app.storage.layout.history(_APP)) / "v1"
    os.truncate(file, 20)
    cautious.clock.forward(_TTL + 1)
    assert await _answers(cautious) == str(first)
    assert [digest for digest, _, _ in _history(cautious)] == [str(first), str(second)]
