"""The soak finds what it looks for, and a short one finds nothing."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench.soaking.exchange import Answer, ask
from bench.soaking.faulty import Faulty
from bench.soaking.history import History, check
from bench.soaking.report import damaged_files, read_logs
from bench.soaking.schedule import REDIS, UPSTREAM, draw_schedule
from bench.soaking.watch import disk_use, slope
from tests.support.process import run
from tests.support.scripted import Scripted, reply

_TREE = Path(__file__).resolve().parents[2]
_CONTENT = bytes(range(256)) * 1024
_DIGEST = "sha256:" + hashlib.sha256(_CONTENT).hexdigest()
_PATH = f"/v2/a/blobs/{_DIGEST}"


@pytest.mark.parametrize("index", ["redis", "embedded"])
def test_a_short_soak_serves_no_wrong_byte_and_loses_no_pull(tmp_path: Path, index: str) -> None:
    """Under every kind of fault, each complete body is what its digest names, and each pull succeeds in the end."""
    place = tmp_path / "figures.json"
    # the run's own directory is made where it is on a disk
    options = ["--seconds", "20", "--seed", "1", "--index", index, "--dir", "/var/tmp", "--json", place]
    said = run([sys.executable, _TREE / "bench" / "soak.py", *map(str, options)], timeout=250).decode()
    found = json.loads(place.read_text())
    assert found["problems"] == [], said
    assert found["failed"] == 0, said
    assert found["figures"]["corrupt bodies"] == "0", said
    assert int(found["figures"]["complete 200 and 206 bodies checked"]) > 0, said
    events = found["figures"]["faults: events"]
    for kind in (*UPSTREAM, "worker-kill", "restart", *(REDIS if index == "redis" else ())):
        assert f"{kind} " in events, said


def test_the_schedule_is_the_seeds() -> None:
    """The same seed gives the same faults, of all kinds, another one others; the end of the run is left in peace."""
    events = draw_schedule(7, 1800, redis=True)
    assert events == draw_schedule(7, 1800, redis=True)
    assert events != draw_schedule(8, 1800, redis=True)
    assert {event.kind for event in events} == {*UPSTREAM, *REDIS, "worker-kill", "restart"}
    assert all(event.at + event.seconds <= 1800 * 0.9 + 0.5 for event in events)
    assert not {event.kind for event in draw_schedule(7, 1800, redis=False)} & set(REDIS)


@pytest.mark.parametrize("seed", range(50))
def test_a_short_run_has_every_fault(seed: int) -> None:
    """Whatever the seed, 20 seconds are enough for each kind."""
    kinds = {event.kind for event in draw_schedule(seed, 20, redis=True)}
    assert kinds == {*UPSTREAM, *REDIS, "worker-kill", "restart"}


async def _through(fault: str | None, span: tuple[int, int | None] | None = None) -> Answer:
    """One request through the proxy, with this fault for certain."""
    with Scripted() as upstream:
        headers = {"Content-Range": f"bytes {span[0]}-{len(_CONTENT) - 1}/{len(_CONTENT)}"} if span else {}
        upstream.on(_PATH, lambda request: reply(206 if request.start else 200, _CONTENT[request.start :], headers))
        proxy = Faulty(upstream.port, 1, stall=0.0)
        await proxy.start()
        try:
            if fault is not None:
                proxy.begin(fault, 600.0, 1.0)
            answer = await ask(proxy.port, "blob", _PATH, _CONTENT, digest=_DIGEST, span=span)
            assert proxy.injected[fault or ""] == (fault is not None)
            return answer
        finally:
            await proxy.stop()


def _checked(place: Path, *answers: Answer) -> tuple[int, int, int]:
    """Bodies, wrong ones, cut ones."""
    history = History(place)
    for answer in answers:
        history.add(answer)
    found = check(history.close(), {_DIGEST: len(_CONTENT)})
    return found.bodies, found.wrong, found.cut


@pytest.mark.parametrize("span", [None, (1000, None)], ids=["whole", "range"])
async def test_a_changed_bit_is_a_corrupt_body(tmp_path: Path, span: tuple[int, int | None] | None) -> None:
    """What comes complete with one wrong bit is found; the same without it is not."""
    wrong = await _through("wrong-bytes", span)
    assert wrong.outcome == "complete"
    assert wrong.wrong_at is not None
    assert _checked(tmp_path / "wrong", wrong) == (1, 1, 0)
    assert _checked(tmp_path / "right", await _through(None, span)) == (1, 0, 0)


@pytest.mark.parametrize("fault", ["cut", "reset", "stall"])
async def test_a_cut_body_is_not_corrupt(tmp_path: Path, fault: str) -> None:
    """A connection that breaks promises nothing."""
    answer = await _through(fault)
    assert answer.outcome == "broken"
    assert _checked(tmp_path / "history", answer) == (0, 0, 1)


@pytest.mark.parametrize(("fault", "status"), [("503", 503), ("429", 429)])
async def test_a_refusal_is_told_as_it_came(fault: str, status: int) -> None:
    """An error is complete, but nothing that a client could use."""
    answer = await _through(fault)
    assert (answer.status, answer.outcome, answer.good) == (status, "complete", False)
    assert (answer.retry_after is not None) == (fault == "429")


async def test_a_registry_that_is_down_gives_no_answer() -> None:
    """Neither a status nor a body comes."""
    answer = await _through("down")
    assert (answer.status, answer.good) == (0, False)


async def test_a_range_that_is_ignored_brings_the_whole() -> None:
    """The registry never sees the Range."""
    answer = await _through("no-range", (1000, None))
    assert (answer.status, answer.start, answer.received) == (200, 0, len(_CONTENT))


async def test_every_way_to_be_wrong_is_found(tmp_path: Path) -> None:
    """A body of another digest, another length, another part than was asked for: each is a corrupt one."""
    whole, part = await asyncio.gather(_through(None), _through(None, (1000, None)))
    bad = [
        replace(whole, sha256=hashlib.sha256(b"other").hexdigest()),
        replace(whole, received=whole.received - 1),
        replace(whole, received=whole.received - 1, promised=whole.received - 1),
        replace(whole, digest="sha256:" + "0" * 64),
        replace(part, start=part.start + 1),
        replace(part, received=part.received - 1, promised=part.received - 1),
    ]
    assert _checked(tmp_path / "history", *bad, whole, part) == (8, 6, 0)


def test_crashes_and_damage_are_found(tmp_path: Path) -> None:
    """Lines of a crash, workers that ended by themselves, and blobs that are not what they are called."""
    log = tmp_path / "log"
    killed, ended = ({"event": "worker died", "level": "error", "code": code} for code in (-9, 1))
    crashed = {"event": "request crashed", "level": "error"}
    log.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in (killed, ended, crashed)))
    read = read_logs([log])
    assert (len(read.crashes), len(read.deaths)) == (1, 1)
    folder = tmp_path / "blobs" / "sha256" / "ab"
    folder.mkdir(parents=True)
    (folder / hashlib.sha256(b"right").hexdigest()).write_bytes(b"right")
    (folder / hashlib.sha256(b"other").hexdigest()).write_bytes(b"wrong")
    assert damaged_files(tmp_path / "blobs") == (2, [hashlib.sha256(b"other").hexdigest()])
    assert disk_use(tmp_path) == 10


def test_a_slope_is_that_of_the_line() -> None:
    """Least squares: exact for a line, none for what comes back."""
    assert slope([0, 1, 2, 3], [5, 7, 9, 11]) == 2
    assert slope([0, 1, 2, 3], [1, 2, 2, 1]) == 0
