"""Rights, at random: no caller ever gets content that upstream would refuse, whatever happens meanwhile.

Two users and the anonymous pull from three repositories that share layers: `acme/one` is alice's, `acme/two` is bob's,
`acme/all` is everybody's. Each also asks for the digests of the others by the names that they may use. Meanwhile
upstream fails, images are purged and evicted, the index is lost and the mirror is built anew.
`MIRROR_FAULTS_STORMS` says how many seeds are tried, `MIRROR_FAULTS_SEED` which is the first.
"""

from __future__ import annotations

import asyncio
import base64
import os
import random
from collections import Counter
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest

from mirror.errors import ImageProtected, ManifestUnknown, StoreFull
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.image_names import Image
from tests.faults.conftest import Tally
from tests.support.fake_registry import FakeRegistry, cut, reset, stall, status, wrong_bytes
from tests.support.live_mirror import PATIENCE, Clock, LiveMirror, live_mirror, noise
from tests.support.scripted import Stall

_FIRST: Final = int(os.environ.get("MIRROR_FAULTS_SEED", "0"))
_SEEDS: Final = int(os.environ.get("MIRROR_FAULTS_STORMS", "1"))

_ONE, _TWO, _ALL = "acme/one", "acme/two", "acme/all"
_RIGHTS: Final = {"alice": {_ONE, _ALL}, "bob": {_TWO, _ALL}, "": {_ALL}}
_WORDS: Final = {"alice": "alices-word", "bob": "bobs-word"}


class _Callers:
    """One run."""

    def __init__(self, seed: int, root: Path, *, tokens: bool) -> None:
        self.dice = random.Random(seed)
        self.root = root
        self.clock = Clock()
        self.counted: Counter[str] = Counter()
        self.registry = FakeRegistry(tokens=tokens, users=_WORDS)
        self.registry.rights = {user: set(names) for user, names in _RIGHTS.items()}
        self.blobs: dict[str, set[Digest]] = {}
        self.manifests: dict[str, set[Digest]] = {}
        self.open = AsyncExitStack()
        self.generation = 0
        self.gates: list[Stall] = []
        self.up = asyncio.Event()
        shared = noise(80_000, 1)
        for at, name in enumerate((_ONE, _TWO, _ALL)):
            self.blobs[name] = set()
            self.manifests[name] = set()
            for tag in range(3):
                layers = [noise(70_000, 100 * at + tag), noise(0 if tag == 2 else 900, 7 + 100 * at + tag)]
                if tag == 0:
                    layers.append(shared)
                config = f"{name} {tag}".encode()
                image = self.registry.add_image(name, f"v{tag}", layers, config=config)
                self.manifests[name].add(image)
                self.blobs[name] |= {Digest.of(content) for content in (*layers, config)}
                signature = self.registry.add_image(
                    name,
                    None,
                    [],
                    config=f"signs {image}".encode(),
                    subject={"digest": str(image), "size": 1, "mediaType": "x"},
                )
                self.manifests[name].add(signature)
                self.blobs[name].add(Digest.of(f"signs {image}".encode()))

    async def begin(self) -> None:
        """Open the mirror."""
        upstream = {"url": self.registry.url, "access": "verify"}
        self.mirror: LiveMirror = await self.open.enter_async_context(
            live_mirror(self.root, {"reg.example": upstream}, clock=self.clock, store={"capacity": "600KB"})
        )
        self.generation += 1
        self.up.set()

    async def restart(self) -> None:
        """In the middle of it."""
        self.up.clear()
        self.generation += 1
        for gate in self.gates:
            gate.release()
        await self.open.aclose()
        self.open = AsyncExitStack()
        await self.begin()

    async def caller(self, steps: int) -> None:
        """One client after another, of any user."""
        for _ in range(steps):
            async with asyncio.timeout(PATIENCE):
                await self.ask()

    async def ask(self) -> None:
        dice = self.dice
        user = dice.choice(("alice", "bob", "bob", ""))
        name = dice.choice((_ONE, _TWO, _ALL))
        kind = dice.choice(("blobs", "blobs", "blobs", "manifests", "manifests", "tags", "tag", "referrers", "catalog"))
        # with whatever digest, of this repository or of another
        of = dice.choice((_ONE, _TWO, _ALL, name, name))
        blob = dice.choice(sorted(self.blobs[of]))
        manifest = dice.choice(sorted(self.manifests[of]))
        target, right = {
            "blobs": (f"blobs/{blob}", blob in self.blobs[name] | self.manifests[name]),
            "manifests": (f"manifests/{manifest}", manifest in self.manifests[name]),
            "tag": (f"manifests/v{dice.randrange(3)}", True),
            "tags": ("tags/list", True),
            "referrers": (f"referrers/{manifest}", True),
            "catalog": ("", True),
        }[kind]
        if kind == "blobs" and dice.random() < 0.2:
            # by the door for blobs
            target, right = f"blobs/{manifest}", manifest in self.manifests[name]
        headers: dict[str, str] = {}
        if user:
            headers["Authorization"] = "Basic " + base64.b64encode(f"{user}:{_WORDS[user]}".encode()).decode()
        if kind == "blobs" and dice.random() < 0.3:
            headers["Range"] = f"bytes={dice.randrange(50)}-"
        if dice.random() < 0.1:
            headers["If-None-Match"] = f'"{blob if kind == "blobs" else manifest}"'
        method = dice.choice(("GET", "GET", "HEAD"))
        path = f"/v2/{name}/{target}" if kind != "catalog" else "/v2/_catalog"
        await self.up.wait()
        generation = self.generation
        try:
            got = await self.mirror.ask(path, method=method, headers=headers)
        except (aiohttp.ClientError, ConnectionError, RuntimeError):
            if generation == self.generation:
                raise
            return
        what = f"{user or 'anonymous'} {method} {path} {headers.get('Range', '')}: {got.status} {got.body[:100]!r}"
        self.counted[f"{kind} {got.status}"] += 1
        if kind == "catalog":
            assert b"acme" not in got.body, what
        elif name not in _RIGHTS[user] or not right:
            assert got.status >= 400, what
        elif kind == "referrers" and got.status == 200 and method == "GET":
            assert {Digest.parse(one["digest"]) for one in got.json["manifests"]} <= self.manifests[name], what

    async def trouble(self, steps: int) -> None:
        """Of everybody else."""
        dice = self.dice
        for _ in range(steps):
            await asyncio.sleep(dice.random() * 0.03)
            mirror = self.mirror
            match dice.randrange(9):
                case 0 | 1 | 2:
                    gate = Stall()
                    self.gates.append(gate)
                    asyncio.get_running_loop().call_later(dice.random() * 0.2, gate.release)
                    fault = dice.choice(
                        (status(503), status(500), status(403), cut(66_000), reset(10), wrong_bytes, stall(gate, 10))
                    )
                    self.counted["faults"] += 1
                    self.registry.fail(dice.choice(("blobs", "manifests", "tags", "token")), fault, dice.randint(1, 3))
                case 3:
                    self.registry.expire_tokens()
                case 4:
                    self.clock.forward(dice.choice((5, 60, 400)))
                case 5:
                    with suppress(StoreFull):
                        await mirror.app.storage.eviction.space.make_room(200_000)
                case 6:
                    name = dice.choice((_ONE, _TWO, _ALL))
                    image = Image(Repo("reg.example", name), None, dice.choice(sorted(self.manifests[name])))
                    with suppress(ManifestUnknown, ImageProtected):
                        await mirror.app.admin.images.purge(image)
                case 7:
                    await mirror.app.storage.index.drop([one for names in self.blobs.values() for one in names])
                    await mirror.app.storage.index.set_marker("lost")
                case 8:
                    await self.restart()

    async def all_may_in_the_end(self) -> None:
        """Earlier refusals have no lasting effect: every caller gets what the caller may have."""
        self.registry.heal()
        for gate in self.gates:
            gate.release()
        await self.restart()
        self.clock.forward(5000)
        for user, names in _RIGHTS.items():
            if not user and not self.registry.tokens:
                # who asks for Basic asks everybody
                continue
            headers: dict[str, Any] = {}
            if user:
                headers["Authorization"] = "Basic " + base64.b64encode(f"{user}:{_WORDS[user]}".encode()).decode()
            for name in sorted(names):
                for kind, digests in (("manifests", self.manifests[name]), ("blobs", self.blobs[name])):
                    for digest in sorted(digests):
                        got = await self.mirror.ask(f"/v2/{name}/{kind}/{digest}", headers=headers)
                        assert (got.status, got.whole) == (200, True), f"{user} {name} {kind} {digest}: {got}"


@pytest.mark.parametrize("seed", range(_FIRST, _FIRST + _SEEDS))
@pytest.mark.parametrize("tokens", [True, False])
async def test_no_caller_gets_content_without_the_right(seed: int, tokens: bool, tmp_path: Path, tally: Tally) -> None:
    """Bytes are shared, rights are not."""
    callers = _Callers(seed, tmp_path / "store", tokens=tokens)
    with callers.registry:
        await callers.begin()
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(6):
                    group.create_task(callers.caller(60))
                group.create_task(callers.trouble(40))
            await callers.all_may_in_the_end()
        finally:
            for gate in callers.gates:
                gate.release()
            await callers.open.aclose()
    tally(**{key.replace(" ", "_"): value for key, value in sorted(callers.counted.items())})
