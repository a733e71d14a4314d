"""Everything at once, at random: clients, a bad upstream, eviction, purges, damage, restarts and a Redis that dies.

    await Storm(seed, tmp_path).run(rounds=3)

One round:

    weather ──> many actors, some steps each ──> calm: faults end, every gate opens ──> the invariants are checked
       └── some of: bad upstream, no upstream, an index that is lost, a mirror that is built anew in the middle of it

Invariants during the storm: a complete body matches its digest, and a part is that part of it; a tag answers a digest
that it had; a pinned and whole image is a hit whatever upstream and index do; each request ends.
Invariants in the calm: everything that upstream has can be pulled, the index counts the bytes on disk, no partial is
left, and an image that is called complete can be pulled with upstream off.

The seed decides what happens, but the machine decides in which order: a seed that fails may have to be run a few
times.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import aiohttp

from mirror.app.building import App
from mirror.app.storage import scrub_records
from mirror.errors import BlobDamaged, BlobUnknown, ImageProtected, IndexUnavailable, ManifestUnknown, StoreFull
from mirror.eviction.pinned_images import pinned_images
from mirror.eviction.reconcile import reconcile
from mirror.eviction.scrub import scrub_all
from mirror.inspect.images import Overview
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_MANIFEST
from mirror.oci.reference import Repo
from mirror.policy.image_names import Image
from mirror.policy.records import Freeze, Pin
from mirror.ports import ContentIndex
from mirror.prefetch.batch import prefetch
from mirror.store.local.layout import digest_of_ingest
from mirror.store.local.recovery import sweep
from tests.support.fake_registry import (
    FakeRegistry,
    Fault,
    cut,
    gzipped,
    html,
    ignore_range,
    reset,
    stall,
    status,
    throttle,
    wrong_bytes,
)
from tests.support.live_mirror import Clock, Got, LiveMirror, live_mirror, noise, until
from tests.support.redis_server import RedisServer
from tests.support.scripted import Stall

T = TypeVar("T")

_NAMES: Final = ("library/app", "team/other")
_TAGS: Final = ("v1", "v2", "v3", "v4")
#: Seconds that any one step may take; nothing here waits for more than a second on purpose.
_PATIENCE: Final = 45.0
_CAPACITY: Final = 1_500_000
#: Seconds for which partials stay.
_LONG: Final = 86400.0


class Storm:
    """One run. `redis`: the index and what is shared are there, else in the store."""

    def __init__(self, seed: int, root: Path, *, redis: RedisServer | None = None, mirrors: int = 1) -> None:
        self.seed = seed
        self.dice = random.Random(seed)
        self.root = root
        self.redis = redis
        self.clock = Clock()
        #: Settings go by the seed, too.
        self._small = self.dice.random() < 0.3
        self._capacity = 400_000 if self._small else _CAPACITY
        self._ahead = self.dice.random() < 0.3
        self.counted: Counter[str] = Counter()
        self.history: list[str] = []
        self._mirrors: list[LiveMirror] = []
        self._wanted = mirrors
        self._stack = AsyncExitStack()
        self._registry = FakeRegistry(page=3)
        #: Every digest that a tag ever had.
        self._had: dict[tuple[str, str], set[Digest]] = {}
        self._images: dict[str, list[Digest]] = {name: [] for name in _NAMES}
        self._blobs: dict[str, dict[Digest, bytes]] = {name: {} for name in _NAMES}
        self._gates: list[Stall] = []
        self._stormy = False
        self._index_bad = False
        #: What must be a hit: pinned, whole, and not damaged since. By name.
        self._safe: dict[str, set[Digest]] = {name: set() for name in _NAMES}
        self._restarting = asyncio.Lock()
        #: What works inside a mirror, not as a client of it: ended before the mirror is.
        self._inside: set[asyncio.Future[Any]] = set()
        self._generation = 0
        self._made = 0

    # ------------------------------------------------------------------------------------------------ the run

    async def run(self, rounds: int, *, actors: int = 6, steps: int = 12) -> None:
        """Raises `AssertionError` with what was done."""
        try:
            with self._registry:
                for name in _NAMES:
                    for tag in _TAGS:
                        self._move(name, tag)
                await self._open()
                try:
                    for number in range(rounds):
                        await self._round(number, actors, steps)
                finally:
                    for gate in self._gates:
                        gate.release()
                    await self._stack.aclose()
        except BaseException as error:
            error.add_note(f"seed {self.seed}; the last of what was done:\n" + "\n".join(self.history[-60:]))
            raise

    async def _round(self, number: int, actors: int, steps: int) -> None:
        self._stormy = bool(number % 3) or self.dice.random() < 0.5
        self._say(f"== round {number}: {'storm' if self._stormy else 'fair'}")
        tasks = [asyncio.create_task(self._actor(steps)) for _ in range(actors)]
        if self._stormy:
            tasks.append(asyncio.create_task(self._weather(steps)))
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await self._calm()
        await self._look()

    async def _calm(self) -> None:
        self._registry.heal()
        for gate in self._gates:
            gate.release()
        self._gates.clear()
        if self.redis and self._index_bad:
            self.redis.resume()
            self.redis.restart()
        self._index_bad = False
        self._stormy = False
        for mirror in self._mirrors:
            await asyncio.wait_for(mirror.idle(), _PATIENCE)
        # forget the bad times: misses, and upstreams that were blocked or broken
        self.clock.forward(4000)
        self._registry.heal()

    # ---------------------------------------------------------------------------------------------- the mirror

    async def _open(self) -> None:
        def before(app: App) -> None:
            app.shared.flights._filler.sleep = _briefly

        self._stack = AsyncExitStack()
        settings: dict[str, Any] = {"store": {"capacity": str(self._capacity)}}
        if self._ahead:
            settings["route"] = [{"match": "docker.io/**", "prefetch": True}]
        if self.redis:
            settings["index"] = {"url": self.redis.url, "timeout": "100ms"}
        self._mirrors = [
            await self._stack.enter_async_context(
                live_mirror(self.root, {"docker.io": self._registry.url}, clock=self.clock, before=before, **settings)
            )
            for _ in range(self._wanted)
        ]
        self._generation += 1

    async def _restart(self) -> None:
        """Restart the mirror while other actors are at work."""
        async with self._restarting:
            self._say("restart")
            self._generation += 1
            mirrors, self._mirrors = self._mirrors, []
            for gate in self._gates:
                gate.release()
            for work in self._inside:
                work.cancel()
            await asyncio.gather(*self._inside, return_exceptions=True)
            await asyncio.wait_for(self._stack.aclose(), _PATIENCE)
            assert mirrors
            await self._open()

    async def _do(self, work: Callable[[LiveMirror], Coroutine[Any, Any, object]], *fine: type[Exception]) -> None:
        """Something inside the mirror, which ends with it at the latest."""
        mirror = await self._mirror()
        task = asyncio.ensure_future(work(mirror))
        self._inside.add(task)
        try:
            await asyncio.wait({task})
            if not task.cancelled() and (error := task.exception()) and not isinstance(error, fine):
                raise error
        finally:
            self._inside.discard(task)
            task.cancel()

    async def _mirror(self) -> LiveMirror:
        async with self._restarting:
            return self.dice.choice(self._mirrors)

    # ------------------------------------------------------------------------------------------------ upstream

    def _move(self, name: str, tag: str) -> Digest:
        """A tag to a new image, which shares some of its layers with others."""
        dice = self.dice
        known = [content for blobs in self._blobs.values() for content in blobs.values()]
        layers = [
            dice.choice(known)
            if known and dice.random() < 0.4
            else noise(dice.choice((0, 1, 900, 65_536, 70_000, 150_000)), dice.getrandbits(32))
            for _ in range(dice.randint(1, 3))
        ]
        self._made += 1
        config = f'{{"n": {self._made}}}'.encode()
        if dice.random() < 0.3:
            children = [
                self._registry.add_image(name, None, [layer], config=config + b" " * at)
                for at, layer in enumerate(layers)
            ]
            for at in range(len(layers)):
                self._blobs[name][Digest.of(config + b" " * at)] = config + b" " * at
            digest = self._registry.add_index(name, tag, children)
            self._images[name] += children
        else:
            digest = self._registry.add_image(name, tag, layers, config=config)
            self._blobs[name][Digest.of(config)] = config
        for layer in layers:
            self._blobs[name][Digest.of(layer)] = layer
        self._images[name].append(digest)
        self._had.setdefault((name, tag), set()).add(digest)
        return digest

    def _fault(self) -> Fault:
        dice = self.dice
        match dice.randrange(9):
            case 0:
                return status(dice.choice((500, 502, 503, 403, 401, 404, 416)))
            case 1:
                return throttle(dice.choice((1, 7, None)))
            case 2:
                return html()
            case 3:
                return cut(dice.choice((0, 10, 66_000, 100_000)))
            case 4:
                return reset(dice.choice((0, 10, 66_000, 100_000)))
            case 5:
                return wrong_bytes
            case 6:
                return gzipped
            case 7:
                return ignore_range
            case _:
                gate = Stall()
                self._gates.append(gate)
                asyncio.get_running_loop().call_later(dice.random() * 0.3, gate.release)
                return stall(gate, dice.choice((0, 10, 66_000)))

    async def _weather(self, steps: int) -> None:
        dice = self.dice
        for _ in range(steps):
            await asyncio.sleep(dice.random() * 0.05)
            match dice.randrange(12):
                case 0 | 1 | 2 | 3 | 4 | 5:
                    kind = dice.choice(("blobs", "blobs", "manifests", "tags", "referrers"))
                    times = dice.randint(1, 4)
                    fault = self._fault()
                    self._say(f"upstream: {times} bad answers for {kind}: {getattr(fault, '__qualname__', fault)}")
                    self._registry.fail(kind, fault, times)
                case 6:
                    self._say("upstream heals")
                    self._registry.heal()
                case 7:
                    self.clock.forward(dice.choice((1, 11, 70, 400)))
                case 8:
                    await self._restart()
                case 9 if self.redis:
                    self._index_bad = True
                    self._say("redis: lost")
                    self.redis.kill()
                    await asyncio.sleep(dice.random() * 0.3)
                    self.redis.start()
                case 10 if self.redis:
                    self._index_bad = True
                    self._say("redis: paused")
                    self.redis.pause()
                    await asyncio.sleep(dice.random() * 0.4)
                    self.redis.resume()
                case 11 if self.redis:
                    self._index_bad = True
                    self._say("redis: emptied")
                    self.redis.command("FLUSHALL")
                case _:
                    pass

    # ------------------------------------------------------------------------------------------------ actors

    async def _actor(self, steps: int) -> None:
        doings: list[tuple[int, Callable[[], Awaitable[None]]]] = [
            (8, self._pull),
            (6, self._part),
            (4, self._head),
            (4, self._leave),
            (2, self._list),
            (3, self._upstream_moves),
            (2, self._evict),
            (2, self._purge),
            (2, self._pin),
            (1, self._unpin),
            (1, self._freeze),
            (1, self._lose_a_file),
            (1, self._scrub),
            (1, self._time),
            (2, self._prefetch),
            (1, self._lose_the_index),
            (1, self._tell),
        ]
        weights = [weight for weight, _ in doings]
        for _ in range(steps):
            [(_, doing)] = self.dice.choices(doings, weights)
            self.counted[doing.__name__.strip("_")] += 1
            try:
                async with asyncio.timeout(_PATIENCE):
                    await doing()
            except TimeoutError:
                stands = "\n".join(_where(task) for task in asyncio.all_tasks())
                raise AssertionError(f"{doing.__name__} did not end within {_PATIENCE:g} s\n{stands}") from None

    def _some(self) -> tuple[str, str]:
        return self.dice.choice(_NAMES), self.dice.choice(_TAGS)

    async def _ask(self, target: str, **more: Any) -> Got | None:
        """None: the mirror was built anew meanwhile."""
        mirror = await self._mirror()
        generation, stormy = self._generation, self._stormy
        try:
            got = await mirror.ask(target, **more)
        except (aiohttp.ClientError, ConnectionError, RuntimeError) as error:
            if generation != self._generation:
                return None
            raise AssertionError(f"{target}: {error!r}") from error
        if generation != self._generation:
            return None
        self.counted[str(got.status) if got.whole else "broken"] += 1
        if not stormy and not self._stormy:
            assert got.whole, f"{target}: broken in fair weather: {got.status} {got.headers}"
            assert got.status < 400, f"{target}: {got.status} in fair weather: {got.body[:300]!r}"
        return got

    async def _pull(self) -> None:
        name, tag = self._some()
        await self._pull_one(name, tag)

    async def _pull_one(self, name: str, reference: str, *, must: bool = False) -> None:
        self._say(f"pull {name} {reference[:19]}")
        if not must:
            safe = set(self._safe[name])
        got = await self._ask(f"/v2/{name}/manifests/{reference}")
        if got is None:
            return
        if ":" in reference and not must:
            self._expect_hit(name, Digest.parse(reference), safe, got)
        if must:
            assert (got.status, got.whole) == (200, True), f"{name} {reference}: {got.status} {got.body[:300]!r}"
        if got.status != 200 or not got.whole:
            return
        digest = Digest.parse(got.headers["Docker-Content-Digest"])
        if ":" not in reference:
            assert digest in self._had[name, reference], f"{name}:{reference} never was {digest}"
        manifest = got.json
        for child in manifest.get("manifests", []):
            await self._pull_one(name, child["digest"], must=must)
        blobs = [manifest["config"], *manifest["layers"]] if "layers" in manifest else []
        await asyncio.gather(*(self._blob(name, Digest.parse(blob["digest"]), must=must) for blob in blobs))

    async def _blob(self, name: str, digest: Digest, *, must: bool = False) -> None:
        safe = set(self._safe[name])
        got = await self._ask(f"/v2/{name}/blobs/{digest}")
        if got is None:
            return
        if must:
            assert (got.status, got.whole) == (200, True), f"{name} {digest}: {got.status} {got.body[:300]!r}"
        self._expect_hit(name, digest, safe, got)

    def _expect_hit(self, name: str, digest: Digest, before: set[Digest], got: Got) -> None:
        """Pinned, whole and undamaged all the time: upstream and index have no say."""
        if digest in before & self._safe[name]:
            assert (got.status, got.whole) == (200, True), f"{name} {digest} is pinned: {got.body[:300]!r}"
            self.counted["pinned hits"] += 1

    async def _part(self) -> None:
        name = self.dice.choice(_NAMES)
        digest, content = self.dice.choice(list(self._blobs[name].items()))
        size = len(content)
        first = self.dice.randint(0, max(0, size))
        last = self.dice.choice((None, self.dice.randint(first, size + 10)))
        suffix = self.dice.random() < 0.2
        wanted = f"bytes=-{first}" if suffix else f"bytes={first}-{'' if last is None else last}"
        self._say(f"part {name} {str(digest)[:19]} {wanted} of {size}")
        mirror = await self._mirror()
        generation, stormy = self._generation, self._stormy
        try:
            got = await mirror.ask(f"/v2/{name}/blobs/{digest}", headers={"Range": wanted})
        except (aiohttp.ClientError, ConnectionError, RuntimeError):
            assert generation != self._generation
            return
        if generation != self._generation:
            return
        self.counted[f"part {got.status}" if got.whole else "part broken"] += 1
        if suffix:
            expected = content[size - first :] if first else b""
        else:
            expected = content[first:] if last is None else content[first : last + 1]
        if got.status == 206 and got.whole:
            assert got.body == expected, f"{digest} {wanted} of {size}: {got.headers}"
        if not stormy and not self._stormy:
            assert got.whole
            allowed = (206,) if expected else (206, 200, 416)
            assert got.status in allowed, f"{digest} {wanted} of {size}: {got.status} {got.body[:300]!r}"

    async def _head(self) -> None:
        name, tag = self._some()
        if self.dice.random() < 0.5:
            digest, content = self.dice.choice(list(self._blobs[name].items()))
            got = await self._ask(f"/v2/{name}/blobs/{digest}", method="HEAD")
            # HEAD of a blob that is not here repeats upstream's answer
            if got and got.status == 200 and not self._stormy and "Content-Length" in got.headers:
                assert int(got.headers["Content-Length"]) == len(content), got
            return
        reference = self.dice.choice((tag, str(self.dice.choice(self._images[name]))))
        got = await self._ask(f"/v2/{name}/manifests/{reference}", method="HEAD")
        if got and got.status == 200:
            digest = Digest.parse(got.headers["Docker-Content-Digest"])
            if ":" in reference:
                assert str(digest) == reference
            else:
                assert digest in self._had[name, reference]
            assert int(got.headers["Content-Length"]) == len(self._registry.manifest(name, digest))

    async def _leave(self) -> None:
        """A client that hangs up after some bytes."""
        name = self.dice.choice(_NAMES)
        digest, content = self.dice.choice(list(self._blobs[name].items()))
        after = self.dice.randint(0, len(content))
        self._say(f"leave {name} {str(digest)[:19]} after {after} of {len(content)}")
        mirror = await self._mirror()
        received = bytearray()
        with suppress(aiohttp.ClientError, ConnectionError, RuntimeError):
            async with mirror.open(f"/v2/{name}/blobs/{digest}") as response:
                if response.status == 200:
                    while len(received) < after and (piece := await response.content.read(4096)):
                        received += piece
                    # what comes before the end is not verified yet
                    assert self._stormy or content.startswith(received)
                    response.close()

    async def _list(self) -> None:
        name = self.dice.choice(_NAMES)
        got = await self._ask(f"/v2/{name}/tags/list?n={self.dice.randint(1, 9)}")
        if got and got.status == 200:
            assert set(got.json["tags"]) <= set(_TAGS)
        got = await self._ask(f"/v2/{name}/referrers/{self.dice.choice(self._images[name])}")
        if got and got.status == 200:
            assert got.json["manifests"] == []

    async def _upstream_moves(self) -> None:
        name, tag = self._some()
        digest = self._move(name, tag)
        self._say(f"upstream: {name}:{tag} is {str(digest)[:19]}")

    async def _evict(self) -> None:
        self._say("evict")
        size = self.dice.choice((1, 100_000, 400_000))
        await self._do(lambda mirror: mirror.app.storage.eviction.space.make_room(size), StoreFull)

    async def _purge(self) -> None:
        name, tag = self._some()
        by_tag = self.dice.random() < 0.5
        digest = None if by_tag else self.dice.choice(self._images[name])
        image = Image(Repo("docker.io", name), tag if by_tag else None, digest)
        self._say(f"purge {name} {str(image.reference)[:19]}")
        await self._do(lambda mirror: mirror.app.admin.images.purge(image), ManifestUnknown, ImageProtected, StoreFull)

    async def _pin(self) -> None:
        """An image by digest, once all of it is here: from then on it stays."""
        name = self.dice.choice(_NAMES)
        digest = self.dice.choice(self._images[name])
        repo = Repo("docker.io", name)
        mirror = await self._mirror()
        store = mirror.app.storage.store
        if len({*self._safe[name]}) > 4:
            return
        mirror.app.storage.pins.put(Pin(repo, digest, "a storm", self.clock(), None))
        self._say(f"pin {name} {str(digest)[:19]}")
        # what is being evicted at this moment was chosen before
        async with mirror.app.storage.locks.hold("evict"):
            pass
        parsed = json.loads(self._registry.manifest(name, digest))
        below = {digest, *(Digest.parse(one["digest"]) for one in parsed.get("layers", []))}
        below |= {Digest.parse(parsed["config"]["digest"])} if "config" in parsed else set()
        linked = mirror.app.storage.catalog.get_manifest(repo, digest) is not None
        # another actor may have unpinned it while this one waited
        still_pinned = mirror.app.storage.pins.get(repo, digest) is not None
        if still_pinned and linked and all(_is_here(store, one) for one in below):
            self._say(f"safe {name} {str(digest)[:19]}")
            self._safe[name] |= below

    async def _unpin(self) -> None:
        name = self.dice.choice(_NAMES)
        mirror = await self._mirror()
        # without a wait in between: what is safe and what is pinned change together
        self._say(f"unpin all of {name}")
        self._safe[name].clear()
        for digest in list(self._images[name]):
            mirror.app.storage.pins.drop(Repo("docker.io", name), digest)

    async def _freeze(self) -> None:
        name, tag = self._some()
        repo = Repo("docker.io", name)
        mirror = await self._mirror()
        if self.dice.random() < 0.5 and (had := list(self._had[name, tag])):
            digest = self.dice.choice(had)
            size = len(content := self._registry.manifest(name, digest))
            media_type = json.loads(content).get("mediaType", OCI_MANIFEST)
            self._say(f"freeze {name}:{tag} {str(digest)[:19]}")
            mirror.app.storage.freezes.put(Freeze(repo, tag, digest, media_type, size, "", self.clock()))
        else:
            mirror.app.storage.freezes.drop(repo, tag)

    async def _lose_a_file(self) -> None:
        """Somebody truncates or removes it behind our back."""
        name = self.dice.choice(_NAMES)
        digest, content = self.dice.choice(list(self._blobs[name].items()))
        mirror = await self._mirror()
        if any(digest in safe for safe in self._safe.values()):
            return
        file = mirror.blob_file(digest)
        self._say(f"lose {str(digest)[:19]}")
        with suppress(FileNotFoundError):
            if self.dice.random() < 0.5 or not content:
                file.unlink()
            else:
                # a new file, as a disk check would leave it: who reads the old one reads on
                other = file.with_name("x")
                other.write_bytes(content[: len(content) // 2])
                os.rename(other, file)

    async def _scrub(self) -> None:
        self._say("scrub")

        def work(mirror: LiveMirror) -> Coroutine[Any, Any, object]:
            storage = mirror.app.storage
            return scrub_all(mirror.app.scrub(rate=None), storage.store, scrub_records(storage.layout))

        await self._do(work)

    async def _prefetch(self) -> None:
        """Content that the prefetch reports as present is present, unless it was evicted since."""
        name, tag = self._some()
        self._say(f"prefetch {name}:{tag}")
        stormy = self._stormy

        async def work(mirror: LiveMirror) -> None:
            image = Image(Repo("docker.io", name), tag)
            done = await prefetch(mirror.app.router.guarded, [image], sleep=_briefly)
            # a store that is smaller than what is under way takes not all, and others purge and evict meanwhile
            lost = [one for one in done.failures if not one.reason.startswith("dropped again")]
            assert not lost or stormy or self._stormy or self._small, lost

        await self._do(work)

    async def _lose_the_index(self) -> None:
        self._say("index: cleared")
        await self._do(lambda mirror: mirror.app.storage.index.clear(), IndexUnavailable)

    async def _tell(self) -> None:
        """Commands that only read."""

        async def work(mirror: LiveMirror) -> None:
            images = mirror.app.admin.images
            page = await images.images({"limit": "3"})
            for image in page["images"]:
                with suppress(ManifestUnknown):
                    await images.image(mirror.app.admin._parse_image(image["image"]))
            with suppress(IndexUnavailable):
                await images.plan({"bytes": "300000"})
            await images.pins({})
            await mirror.app.storage.eviction.rounds.tick()

        await self._do(work, StoreFull)

    async def _time(self) -> None:
        self.clock.forward(self.dice.choice((1, 5, 61, 400, 4000)))

    # ------------------------------------------------------------------------------------------- what must hold

    async def _look(self) -> None:
        self._say("-- look")
        mirror = self._mirrors[0]
        for name in _NAMES:
            for tag in _TAGS:
                mirror.app.storage.freezes.drop(Repo("docker.io", name), tag)
        self.clock.forward(10)
        # a partial may have wrong bytes: the first request that resumes it notices that, and no later one
        for name, digest in self._partials():
            await mirror.ask(f"/v2/{name}/blobs/{digest}")
        for name in _NAMES:
            for tag in _TAGS:
                got = await self._ask(f"/v2/{name}/manifests/{tag}", method="HEAD")
                assert got
                now = self._registry.repository(name).tags[tag]
                assert got.headers["Docker-Content-Digest"] == str(now), f"{name}:{tag} is not {now}: {got.headers}"
                await self._pull_one(name, tag, must=True)
        # the next request finishes a partial that no tag names any more, unless pins leave no room for it
        for one in self._mirrors:
            await asyncio.wait_for(one.idle(), _PATIENCE)
        kept = set()
        for name, digest in self._partials():
            got = await self._ask(f"/v2/{name}/blobs/{digest}")
            assert got
            assert (got.status, got.whole) == (200, True), f"{name} {digest}: {got.status} {got.body[:300]!r}"
            if "bypass" in got.headers["Cache-Status"]:
                kept.add(digest)
        for one in self._mirrors:
            await asyncio.wait_for(one.idle(), _PATIENCE)
        # who opens the partial in the moment of its commit leaves a state file, which the hourly sweep drops
        sweep(mirror.app.storage.layout, keep=_LONG, now=lambda: time.time() + _LONG / 2)

        def left() -> list[Path]:
            files = (self.root / "ingest").iterdir()
            return [file for file in files if digest_of_ingest(file.name.removesuffix(".state")) not in kept]

        await until(lambda: not left(), lambda: f"left in ingest: {left()}")
        # files that were cut short, and that no client has requested since
        await self._scrub()
        for one in self._mirrors:
            await asyncio.wait_for(one.idle(), _PATIENCE)
        await self._look_at_bytes(mirror)
        await self._look_at_pins(mirror)
        await self._look_without_upstream(mirror)

    def _partials(self) -> list[tuple[str, Digest]]:
        """The growing and the interrupted blobs, each with a repository that has it upstream."""
        files = sorted((self.root / "ingest").iterdir())
        digests = [digest for file in files if (digest := digest_of_ingest(file.name))]
        return [
            (name, digest)
            for digest in digests
            for name in [name for name in _NAMES if digest in self._blobs[name]][:1]
        ]

    async def _look_at_bytes(self, mirror: LiveMirror) -> None:
        storage = mirror.app.storage
        for one in self._mirrors:
            await one.app.shared.background.finish()
            await one.app.storage.eviction.write_behind.flush()
        # the rounds of the evictors go on: they wait while disk and index are compared
        async with storage.locks.hold("rebuild"), storage.locks.hold("evict"):
            for one in self._mirrors:
                await one.app.storage.eviction.write_behind.flush()
            await _patiently(lambda: reconcile(storage.store, storage.catalog, storage.index))
            usage = await _patiently(storage.index.usage)
            on_disk = {info.digest: info.size for info in storage.store.walk()}
            assert (usage.blobs, usage.bytes) == (len(on_disk), sum(on_disk.values())), f"{usage} is not {len(on_disk)}"
        with suppress(StoreFull):
            await storage.eviction.space.collect()
        async with storage.locks.hold("rebuild"), storage.locks.hold("evict"):
            on_disk = {info.digest: info.size for info in storage.store.walk()}
            recorded = await _patiently(lambda: _recorded(storage.index))
        lacking, strays = on_disk.keys() - recorded, recorded - on_disk.keys()
        assert not lacking, f"the index lacks what is on disk: {lacking}"
        # a late record from a replica may name a blob that was evicted meanwhile; such a record is
        # dropped when it is met
        assert self.redis or not strays, f"the index has what is not on disk: {strays}"
        for one in self._mirrors:
            assert one.app.storage.eviction.space.reserved == 0
        if not any(self._safe.values()) and not list(storage.pins.all()):
            assert sum(on_disk.values()) <= self._capacity
        for digest in on_disk:
            assert digest.matches(storage.store.read(digest, 1 << 20)), f"{digest} is wrong on disk"

    async def _look_at_pins(self, mirror: LiveMirror) -> None:
        for safe in self._safe.values():
            for digest in safe:
                assert _is_here(mirror.app.storage.store, digest), f"{digest} was pinned and is gone"

    async def _look_without_upstream(self, mirror: LiveMirror) -> None:
        storage = mirror.app.storage
        pinned = pinned_images(storage.pins, (), storage.catalog, self.clock())
        overview = Overview(storage.store, storage.catalog, storage.index, pinned)
        complete = [image async for image in overview.images() if image.complete]
        self._registry.fail("manifests", status(503), times=100_000)
        self._registry.fail("blobs", status(503), times=100_000)
        try:
            for image in complete:
                self.counted["complete"] += 1
                reference = image.tag or str(image.root.digest)
                self._say(f"without upstream: {image.repo.name} {reference[:19]}")
                got = await mirror.ask(f"/v2/{image.repo.name}/manifests/{reference}")
                assert got.status == 200, f"{image.name} is complete, but {got.status} {got.body!r}"
                for platform in image.platforms:
                    if not platform.complete:
                        continue
                    got = await mirror.ask(f"/v2/{image.repo.name}/manifests/{platform.digest}")
                    assert got.status == 200, f"{image.name} {platform} is complete, but {got.status} {got.body!r}"
                    for blob in [got.json["config"], *got.json["layers"]]:
                        got = await mirror.ask(f"/v2/{image.repo.name}/blobs/{blob['digest']}")
                        assert (got.status, got.whole) == (200, True), f"{image.name} is complete, not {blob}"
        finally:
            self._registry.heal()
            self.clock.forward(4000)

    def _say(self, what: str) -> None:
        self.history.append(what)


async def _patiently(work: Callable[[], Awaitable[T]]) -> T:
    """The result, once Redis answers: it gets 100 ms for that, and a busy machine can make it miss them."""
    async with asyncio.timeout(_PATIENCE):
        while True:
            with suppress(IndexUnavailable):
                return await work()
            await asyncio.sleep(0.05)


async def _recorded(index: ContentIndex) -> set[Digest]:
    return {digest async for batch in index.digests() for digest in batch}


def _where(task: asyncio.Task[Any]) -> str:
    """The await of a task, from the outermost call to the innermost."""
    found = []
    coroutine: Any = task.get_coro()
    while coroutine is not None:
        frame = next(
            (frame for kind in ("cr", "gi", "ag") if (frame := getattr(coroutine, f"{kind}_frame", None))), None
        )
        if frame is None:
            break
        found.append(f"{frame.f_code.co_qualname}:{frame.f_lineno}")
        if frame.f_code.co_name in ("__aexit__", "__aenter__") and hasattr(frame.f_locals.get("self"), "gen"):
            # asyncio does not say what an asynchronous generator waits for
            coroutine = frame.f_locals["self"].gen
        else:
            kinds = ("cr_await", "gi_yieldfrom", "ag_await")
            coroutine = next((each for kind in kinds if (each := getattr(coroutine, kind, None)) is not None), None)
    return f"{task.get_name()}: {' > '.join(found)}"


async def _briefly(_seconds: float) -> None:
    await asyncio.sleep(0.002)


def _is_here(store: Any, digest: Digest) -> bool:
    try:
        return digest.matches(store.read(digest, 1 << 20))
    except (BlobUnknown, BlobDamaged):
        return False
