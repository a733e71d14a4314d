"""`kill -9` and power cuts while bytes come out of turn: no client gets a wrong byte, and no map lies."""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from types import TracebackType

import pytest

from mirror.errors import MirrorError
from mirror.oci.digest import Digest
from mirror.oci.span import Span
from mirror.policy.fills.span_blocks import BLOCK
from mirror.store.local import span_file
from mirror.store.local.blobs import LocalStore
from mirror.store.local.layout import Layout
from tests.faults.conftest import APPS, Tally, add_apps
from tests.support.ext4 import Ext4, refusal
from tests.support.fake_registry import FakeRegistry
from tests.support.forked_workers import ForkedWorkers
from tests.support.live_mirror import noise
from tests.support.mirror_process import write_config
from tests.support.process import PATIENCE, eventually
from tests.support.ranged_upstream import RangedBody
from tests.support.scripted import Answering, Request, Script, Stall
from tests.support.stubborn import Stubborn

_LAYERS = (2_000_000, 3_000_000)
_BLOCKS = 24
_SIZE = _BLOCKS * BLOCK - 999
_CONTENT = noise(_SIZE, seed=57)
_DIGEST = Digest.of(_CONTENT)


class _PartReaders:
    """Clients that read small parts of layers all the time, try again if they break, and look at every byte."""

    def __init__(self, port: int, layers: dict[str, bytes], *, clients: int = 3) -> None:
        """`layers` are the targets of blobs, and what they have."""
        self._port = port
        self._layers = layers
        self._leaving = threading.Event()
        self._counting = threading.Condition()
        self.read = self.unverified = 0
        self.wrong: list[str] = []
        self._threads = [
            threading.Thread(target=self._run, args=(random.Random(n),), daemon=True) for n in range(clients)
        ]

    def wait_for(self, more: int) -> None:
        """Until so many more parts were read."""
        with self._counting:
            wanted = self.read + more
            assert self._counting.wait_for(lambda: self.read >= wanted, PATIENCE), "no part came"

    def wait_for_unverified(self) -> None:
        """Until another part was read out of turn."""
        with self._counting:
            wanted = self.unverified + 1
            assert self._counting.wait_for(lambda: self.unverified >= wanted, PATIENCE), "no part is read out of turn"

    def _run(self, chance: random.Random) -> None:
        while not self._leaving.is_set():
            target, content = chance.choice(list(self._layers.items()))
            first = chance.randrange(len(content))
            last = min(len(content) - 1, first + chance.randrange(1, 2 * BLOCK))
            got = self._ask(target, first, last)
            if got is None:
                self._leaving.wait(0.01)
                continue
            body, unverified = got
            with self._counting:
                self.read += 1
                self.unverified += unverified
                if body != content[first : last + 1]:
                    self.wrong.append(f"{target} {first}-{last}")
                self._counting.notify_all()

    def _ask(self, target: str, first: int, last: int) -> tuple[bytes, bool] | None:
        """The part, and whether it is unverified; None if there is no whole answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        try:
            connection.request("GET", target, headers={"Range": f"bytes={first}-{last}"})
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()
        return (body, "unverified" in answer.headers.get("Cache-Status", "")) if answer.status == 206 else None

    def __enter__(self) -> _PartReaders:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leaving.set()
        for thread in self._threads:
            thread.join(60)


def test_41_killed_while_parts_are_read(
    registry: FakeRegistry, tmp_path: Path, times: Callable[[str, int], int], tally: Tally
) -> None:
    """Rows 41 and 58 of lazy blobs: beside clients that pull whole images, others read parts of their layers."""
    kills = times("KILLS", 20)
    add_apps(registry, _LAYERS)
    layers = {
        f"/v2/{name}/blobs/{Digest.of(content)}": content
        for number, (name, _) in enumerate(APPS)
        for content in (noise(size, seed=number * 10 + n) for n, size in enumerate(_LAYERS))
    }
    more = '[[route]]\nmatch = "**"\nranges = "lazy"\nlazy_share = 0.9\nlazy_pause = "100ms"\ntag_ttl = "0s"\n'
    config = write_config(tmp_path, {"docker.io": registry.url}, workers=1, capacity="20MB", more=more)
    config.write_text(config.read_text().replace('[[route]]\nmatch = "docker.io/**"\ntag_ttl = "5m"\n', ""))
    chance = random.Random(3)
    with (
        ForkedWorkers(config) as workers,
        Stubborn(workers.port, APPS, clients=2, tries=400, pause=0.01) as pulls,
        _PartReaders(workers.port, layers) as parts,
    ):
        for number in range(kills):
            workers.start()
            if number % 4 == 0:
                # on a busy machine nothing may come in the time of the others
                parts.wait_for_unverified()
            time.sleep(chance.uniform(0, 0.3))  # the moment of the fault, not a wait for anything
            workers.kill()
        workers.start()
        pulls.wait_for_pulls(3)
        parts.wait_for(20)
        pulls.leave()
    log = workers.log.read_text()
    tally(kills=kills, pulls=pulls.pulled, parts=parts.read, unverified=parts.unverified)
    assert parts.unverified, "no part was read out of turn, so nothing was tried"
    assert not parts.wrong
    assert not pulls.corrupt
    assert not pulls.failed
    assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:4000]
    wrong = [line for line in map(json.loads, filter(None, log.splitlines())) if "wrong" in str(line.get("event"))]
    assert not wrong


class _Pause(Stall):
    """A moment of an upstream that limits the rate of each connection."""

    def wait(self) -> None:
        """By the upstream's thread."""
        time.sleep(0.05)


def _slowly(request: Request, answer: Answering) -> Script:
    """Twenty megabytes a second and connection, at most."""
    [head, body] = answer(request)
    assert isinstance(body, bytes)
    pieces = (body[at : at + (1 << 20)] for at in range(0, len(body), 1 << 20))
    return [head, *(step for piece in pieces for step in (_Pause(), piece))]


def _bounded(registry: FakeRegistry) -> list[str]:
    """The ranges that were asked for and have an end, as those of further connections have."""
    ranges = (request.header("Range") or "-" for request in registry.of_kind("blobs", "GET"))
    return [each for each in ranges if not each.endswith("-")]


def _asks_for_more(registry: FakeRegistry, before: int) -> bool:
    return len(_bounded(registry)) > before


def test_41_killed_while_a_blob_comes_over_several_connections(
    registry: FakeRegistry, tmp_path: Path, times: Callable[[str, int], int], tally: Tally
) -> None:
    """Rows 41 and 58 of blobs that come in parallel: whoever goes on takes the bytes that came ahead, and they are
    right.
    """
    kills = times("KILLS", 8)
    layers = [noise(48 << 20, seed=48), noise(40 << 20, seed=40)]
    registry.add_image("library/large", "v1", layers)
    registry.fail("blobs", _slowly, times=10_000)
    config = write_config(tmp_path, {"docker.io": registry.url}, workers=1)
    chance = random.Random(5)
    with (
        ForkedWorkers(config) as workers,
        Stubborn(workers.port, [("library/large", "v1")], clients=2, tries=400, pause=0.01) as pulls,
    ):
        for number in range(kills):
            workers.start()
            if number % 4 == 0:
                # on a busy machine no further connection may be open in the time of the others
                before = len(_bounded(registry))
                eventually(partial(_asks_for_more, registry, before), "a part is asked for")
            time.sleep(chance.uniform(0, 1.0))  # the moment of the fault, not a wait for anything
            workers.kill()
            # cold again, where a machine was fast enough to fetch all of it
            for file in (tmp_path / "store" / "blobs").glob("*/*/*"):
                if file.stat().st_size > 1 << 20:
                    file.unlink()
        workers.start()
        pulls.wait_for_pulls(2)
        pulls.leave()
    log = workers.log.read_text()
    bounded = _bounded(registry)
    tally(kills=kills, pulls=pulls.pulled, requests=registry.count("blobs", "GET"), bounded=len(bounded))
    assert bounded, "no blob came in parts, so nothing was tried"
    assert not pulls.corrupt
    assert not pulls.failed
    assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:4000]
    assert "do not match" not in log
    assert not [file for file in (tmp_path / "store" / "ingest").iterdir() if file.suffix != ".state"]


class _Spans:
    """What a process does with the spans of a blob, until the disk is gone, and what must be there after that."""

    def __init__(self, root: Path, chance: random.Random) -> None:
        self._root = root
        self._chance = chance
        #: Blocks that a sync has ended for, and that nobody has begun to punch since.
        self.durable: set[int] = set()
        #: How many of the notes must be there: those before the last sync that has ended.
        self.noted = 0
        self.steps = 0

    def run(self) -> None:
        with suppress(MirrorError, OSError):
            spans = LocalStore(Layout(self._root)).spans(_DIGEST, "test", _SIZE)
            assert spans is not None
            notes = len(spans.served())
            while True:
                first = self._chance.randrange(_BLOCKS)
                wanted = Span(first * BLOCK, min(_SIZE, (first + self._chance.randrange(1, 5)) * BLOCK))
                step = self._chance.random()
                if step < 0.6:
                    if claim := spans.claim(wanted):
                        claim.fill(RangedBody(_CONTENT, claim.span, lambda _: None), lambda _: None)
                        claim.release()
                elif step < 0.7:
                    spans.note_served({"number": notes})
                    notes += 1
                elif step < 0.85:
                    self.durable -= set(range(first, -(-wanted.stop // BLOCK)))
                    spans.punch(wanted)
                else:
                    here = {block for run in spans.here(Span(0, _SIZE)) for block in _blocks(run)}
                    spans.sync()
                    self.durable, self.noted = here, notes
                self.steps += 1


def _blocks(run: Span) -> range:
    return range(run.start // BLOCK, -(-run.stop // BLOCK))


@pytest.mark.skipif(refusal() is not None, reason=f"power cannot be cut here: {refusal()}")
def test_42_power_cuts_of_spans(
    tmp_path: Path, times: Callable[[str, int], int], tally: Tally, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 42 of lazy blobs: whatever was done at the moment of the cut, what is here afterwards has the right bytes,
    and what was synced is here.
    """
    cuts = times("CUTS", 12)
    boots = count()

    def boot() -> None:
        own = next(boots).to_bytes(16, "big")
        monkeypatch.setattr(span_file, "boot_id", lambda: own)

    chance = random.Random(4)
    kept = steps = 0
    with Ext4(tmp_path) as disk:
        root = disk.mount_point / "store"
        for number in count():
            # on a busy machine nothing may be synced in the time of the first ones
            if number >= cuts and kept:
                break
            boot()
            LocalStore(Layout(root))
            user = _Spans(root, random.Random(number))
            thread = threading.Thread(target=user.run)
            thread.start()
            time.sleep(chance.uniform(0.0, 0.2))  # the moment of the fault
            disk.cut()
            thread.join(60)
            assert not thread.is_alive()
            disk.remount()
            boot()
            spans = LocalStore(Layout(root)).spans(_DIGEST, "test", None)
            here = set[int]()
            if spans is not None:
                for run in spans.here(Span(0, _SIZE)):
                    reader = spans.open(run)
                    assert reader is not None
                    assert reader.pread(run.length, run.start) == _CONTENT[run.start : run.stop]
                    reader.close()
                    here |= set(_blocks(run))
                numbers = [note["number"] for note in spans.served()]
                assert numbers[: user.noted] == list(range(user.noted))
                spans.close()
            assert user.durable <= here
            assert spans is not None or not user.noted
            kept += len(here)
            steps += user.steps
    tally(cuts=number, steps=steps, kept=kept)
