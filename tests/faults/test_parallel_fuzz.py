"""Blobs over several connections, and parts of lazy ones, from an upstream that does anything: by dice, whose seed is
told. What is tried of each connection alone is in `flows/test_upstream_faults.py`.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Final

import aiohttp
import pytest

from mirror import telemetry
from mirror.fills.flight import Flight
from mirror.fills.further_connections import ConnectionMemory
from mirror.oci.digest import Digest
from mirror.policy.fills import fill_ahead
from mirror.policy.fills.span_blocks import BLOCK
from mirror.ports import BlobInfo
from mirror.upstream.registry import RegistryUpstream
from tests.faults.conftest import Tally
from tests.support.cancelling import Baseline
from tests.support.fake_registry import FakeRegistry, Fault, cut, ignore_range, reset, status, throttle, wrong_bytes
from tests.support.live_mirror import LiveMirror, live_mirror, noise
from tests.support.scripted import Answering, Close, Request, Script, Stall, chunked, reply
from tests.support.several_connections import small_parts

_SEED: Final = int(os.environ.get("MIRROR_FAULTS_SEED", "59"))
_SIZES: Final = (700_000, 1_000_001, 1 << 20, 2_345_678)
_PLAIN: Final = "library/plain"
_LAZY: Final = "library/lazy"
_ROUTES: Final = [
    {"match": f"docker.io/{_LAZY}", "ranges": "lazy", "lazy_share": 0.5, "lazy_pause": "0s"},
    {"match": "docker.io/**"},
]
#: Downloads at once, over all blobs: too few for all connections that are wanted.
_TURNS: Final = 8
_CLIENTS: Final = 10
#: The share of the requests that meet a fault, in each round.
_SHARES: Final = (0.05, 0.2, 0.4)
#: Bytes that must have come over further connections, or too little was tried.
_FURTHER: Final = 1 << 20
#: Requests for blobs after which no more rounds are begun; three rounds take about a hundred.
_MOST_REQUESTS: Final = 3000


class _Moment(Stall):
    """Upstream does nothing for a moment."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    def wait(self) -> None:
        """By the upstream's thread."""
        time.sleep(self._seconds)


class _Answer:
    """A well-behaved answer, and the dice for what becomes of it."""

    def __init__(self, script: Script, request: Request, chance: random.Random) -> None:
        sent = b"".join(step for step in script if isinstance(step, bytes))
        self.head, gap, self.body = sent.partition(b"\r\n\r\n")
        self.head += gap
        self.first = request.start
        named = re.search(rb"Content-Range: bytes \d+-\d+/(\d+)", self.head)
        #: The size of the whole blob.
        self.size = int(named[1]) if named else len(self.body)
        self.somewhere = chance.randrange(1, len(self.body)) if len(self.body) > 1 else 0

    def slowly(self, pause: float) -> Script:
        """All of it."""
        steps: list[bytes | Stall] = [self.head]
        for at in range(0, len(self.body), 200_000):
            steps += [_Moment(pause), self.body[at : at + 200_000]]
        return steps

    def stands_still(self, request: Request, answer: Answering) -> Script:
        """For longer than anybody waits for it."""
        return [self.head, self.body[: self.somewhere], _Moment(0.3), self.body[self.somewhere :]]

    def in_chunks(self, *, end: bool) -> Fault:
        """Without a length, and without its last bytes unless `end`."""
        start = re.sub(rb"Content-Length: \d+", b"Transfer-Encoding: chunked", self.head)
        some, rest = self.body[: self.somewhere], self.body[self.somewhere :]
        script = [start, chunked(some, end=False), *([chunked(rest)] if end else [Close()])]
        return lambda request, answer: script if self.somewhere else [Close()]

    def another(self, *, moved: int = 0, grown: int = 0) -> Fault:
        """A part that lies elsewhere, or of a blob of another size."""
        first, last = self.first + moved, self.first + moved + len(self.body) - 1
        named = {"Content-Range": f"bytes {first}-{last}/{self.size + moved + grown}"}
        return lambda request, answer: reply(206, self.body, named)

    def less(self, request: Request, answer: Answering) -> Script:
        """Fewer bytes than were asked for, as a server may do."""
        last = self.first + self.somewhere - 1
        named = {"Content-Range": f"bytes {self.first}-{last}/{self.size}"}
        return reply(206, self.body[: self.somewhere], named) if self.somewhere else [Close()]


class _Dice:
    """What upstream does with each request for a blob. It is a `Fault`."""

    def __init__(self, seed: int) -> None:
        self.share = 0.0
        self.rolled = 0
        #: Of each kind of fault, how often it came.
        self.done: Counter[str] = Counter()
        #: Bytes that were given although they were not asked for, or could not be used, at most.
        self.in_vain = 0
        self._seed = seed
        self._lock = threading.Lock()

    def __call__(self, request: Request, answer: Answering) -> Script:
        with self._lock:
            chance = random.Random(f"{self._seed}/{self.rolled}")
            self.rolled += 1
        script = answer(request)
        found = _Answer(script, request, chance)
        if not found.head.startswith(b"HTTP/1.1 20"):
            return script
        faults = _faults(found)
        if _LAZY in request.path:
            # parts may be sent before they are verified
            del faults["wrong"]
        pause = chance.choice([0.0, 0.0, 0.005, 0.02])
        if chance.random() >= self.share:
            return found.slowly(pause)
        kind = chance.choice(sorted(faults))
        with self._lock:
            self.done[kind] += 1
            self.in_vain += found.size if kind in ("whole", "wrong", "416") else len(found.body)
        return [_Moment(pause), *faults[kind](request, answer)]


def _faults(found: _Answer) -> dict[str, Fault]:
    return {
        "cut at once": cut(0),
        "cut": cut(found.somewhere),
        "reset": reset(found.somewhere),
        "stands still": found.stands_still,
        "wrong": wrong_bytes,
        "401": status(401),
        "403": status(403),
        "416": status(416),
        "500": status(500),
        "503": status(503, {"Retry-After": "1"}),
        "429": throttle(1),
        "whole": ignore_range,
        "another part": found.another(moved=1),
        "another size": found.another(grown=77),
        "nonsense": lambda request, answer: reply(206, found.body, {"Content-Range": "bytes what"}),
        "no http": lambda request, answer: [b"SSH-2.0-what\r\n", Close()],
        "nothing": lambda request, answer: [Close()],
        "chunked": found.in_chunks(end=True),
        "chunked, cut": found.in_chunks(end=False),
        "less": found.less,
        "more": lambda request, answer: [*answer(request), b"surplus" * 1000],
    }


class _Clients:
    """They ask for whole blobs and for parts, and some leave."""

    def __init__(self, mirror: LiveMirror, blobs: dict[str, bytes], seed: int) -> None:
        self._mirror = mirror
        self._blobs = blobs
        self._seed = seed
        #: Of each kind of answer, how many there were.
        self.counted: Counter[str] = Counter()
        self.wrong: list[str] = []

    async def run(self, number: int, rounds: int) -> None:
        """One of them."""
        chance = random.Random(f"{self._seed}/client/{number}/{self._mirror.clock()}")
        for _ in range(rounds):
            target, content = chance.choice(sorted(self._blobs.items()))
            _forget_faults(self._mirror)
            match chance.choice(["whole", "whole", "part", "part", "rest", "leaves"]):
                case "leaves":
                    await self._leave(target, chance.randrange(300_000))
                case "whole":
                    await self._ask(target, content, None, None)
                case "rest":
                    await self._ask(target, content, chance.randrange(len(content)), None)
                case _:
                    first = chance.randrange(len(content))
                    last = min(len(content) - 1, first + chance.randrange(1, 3 * BLOCK))
                    await self._ask(target, content, first, last)

    async def _ask(self, target: str, content: bytes, first: int | None, last: int | None) -> None:
        named = {} if first is None else {"Range": f"bytes={first}-{'' if last is None else last}"}
        got = await self._mirror.ask(target, headers=named)
        self.counted[f"{got.status}{'' if got.whole else ' broken'}"] += 1
        wanted = content if got.status == 200 else content[first : None if last is None else last + 1]
        if got.status in (200, 206) and got.whole and got.body != wanted:
            self.wrong.append(f"{target} {named}: {len(got.body)} bytes")

    async def _leave(self, target: str, after: int) -> None:
        async with self._mirror.open(target) as answer:
            with suppress(aiohttp.ClientError, ConnectionError, asyncio.IncompleteReadError):
                await answer.content.readexactly(after)
            answer.close()


def _forget_faults(mirror: LiveMirror) -> None:
    """Several connections are best, whatever the last blob has met."""
    mirror.app.shared.flights._filler.connections = ConnectionMemory(time.monotonic)


def _forget_blobs(mirror: LiveMirror, blobs: dict[str, bytes]) -> None:
    for content in blobs.values():
        with suppress(FileNotFoundError):
            mirror.blob_file(Digest.of(content)).unlink()


async def _time_passes(mirror: LiveMirror, registry: FakeRegistry, chance: random.Random) -> None:
    while True:
        await asyncio.sleep(0.01)
        mirror.clock.forward(0.5)
        if chance.random() < 0.02:
            registry.expire_tokens()


def _counted(name: str, **labels: str) -> int:
    return int(sum(count for found, count in telemetry.counted(name) if labels.items() <= found.items()))


def _counts() -> dict[str, int]:
    return {
        "received": _counted("mirror_upstream_bytes"),
        "further": _counted("mirror_further_connection_bytes"),
        "given_back": _counted("mirror_connections_given_back"),
        "failed": _counted("mirror_fills", result="failed"),
    }


@pytest.mark.parametrize("seed", range(_SEED, _SEED + int(os.environ.get("MIRROR_FAULTS_FUZZES", "2"))))
async def test_1_22_any_upstream(
    registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tally: Tally, seed: int
) -> None:
    """Rows 1 to 25, of blobs in parts: no client is given a wrong byte for a right one, what is fetched more than once
    is what faults have spoilt, and nothing is left at the end: no file, task, descriptor or turn.
    """
    small_parts(monkeypatch.setattr)
    for name in ("_LATE", "_SLOW"):
        monkeypatch.setattr(fill_ahead, name, 0.1)
    blobs: dict[str, bytes] = {}
    for name in (_PLAIN, _LAZY):
        layers = [noise(size, seed=number + len(name)) for number, size in enumerate(_SIZES)]
        registry.add_image(name, "v1", layers)
        blobs |= {f"/v2/{name}/blobs/{Digest.of(layer)}": layer for layer in layers}
    registry.tokens = True
    dice, stored = _Dice(seed), 0
    upstream = {
        "url": registry.url,
        "connections_per_blob": 4,
        "max_concurrent_downloads": _TURNS,
        "read_timeout": 0.25,
    }
    async with live_mirror(tmp_path / "store", {"docker.io": upstream}, route=_ROUTES) as mirror:
        filler = mirror.app.shared.flights._filler
        published = filler._published

        async def note(info: BlobInfo, flight: Flight) -> None:
            nonlocal stored
            stored += info.size
            await published(info, flight)

        async def nap(seconds: float) -> None:
            await asyncio.sleep(min(seconds, 0.01))

        filler.sleep, filler._published = nap, note
        for name in (_PLAIN, _LAZY):
            assert (await mirror.ask(f"/v2/{name}/manifests/v1")).status == 200
        # so that all files and connections are there that may stay open
        for target in blobs:
            await mirror.ask(target)
        await mirror.idle()
        baseline, before, stored = Baseline(), _counts(), 0
        clients = _Clients(mirror, blobs, seed)
        registry.fail("blobs", dice, times=2 * _MOST_REQUESTS)
        passing = asyncio.create_task(_time_passes(mirror, registry, random.Random(seed)))
        rounds = 0
        while rounds < len(_SHARES) or (
            # on a busy machine further connections gain little and are soon given back: it takes more rounds
            _counts()["further"] - before["further"] <= _FURTHER and dice.rolled < _MOST_REQUESTS
        ):
            dice.share = _SHARES[rounds % len(_SHARES)]
            rounds += 1
            _forget_blobs(mirror, blobs)
            await asyncio.gather(*(clients.run(number, 5) for number in range(_CLIENTS)))
            await mirror.idle()
        passing.cancel()
        registry.heal()
        _forget_blobs(mirror, blobs)
        mirror.clock.forward(60)
        for target in blobs:
            # what had come of a flight that was given up may be wrong: the first one finds that out
            answers = [await mirror.ask(target), await mirror.ask(target)]
            assert answers[0].whole or dice.done["wrong"], target
            assert (answers[1].status, answers[1].whole) == (200, True), target
        await mirror.idle()
        counts = {name: count - before[name] for name, count in _counts().items()}
        faults = dice.done.total()
        tally(seed=seed, rounds=rounds, requests=dice.rolled, faults=faults, stored=stored, **counts)
        assert not clients.wrong, f"seed {seed}"
        assert counts["further"] > _FURTHER, "no blob came over several connections, so nothing was tried"
        spoilt = dice.in_vain + counts["failed"] * max(_SIZES) + (faults + counts["given_back"]) * BLOCK
        assert stored <= counts["received"] <= stored + spoilt, f"seed {seed}: {counts}"
        assert {file.suffix for file in (tmp_path / "store" / "ingest").iterdir()} <= {".avoid"}, f"seed {seed}"
        used = mirror.app.router._upstream_for("docker.io")
        assert isinstance(used, RegistryUpstream)
        assert used._blobs._value == _TURNS, f"seed {seed}"
        # idle connections may stay open, of the mirror and of its clients
        used._blob_client.close()
        await mirror.session.close()
        await baseline.reached()
