"""What clients do, drawn from the seed, and how often each tries again.

    pull         HEAD of the tag, GET of the manifest by digest, config and layers three at a time, as containerd does
    parallel     one blob in up to four ranges at once, as containerd 2 does; of a cold blob all follow its growth
    range        a random part of a blob
    slow         a blob at 256 KiB/s through a small socket buffer
    hang-up      a blob, left after a part of it
    stat, tags   HEAD of a blob, a tag list

A body that breaks is resumed by Range from where it broke, up to three times without progress. What fails otherwise is
begun again after 1, 2, 4, 8 and 16 seconds, or the time in `Retry-After`; what has come is kept. A blob that is wrong
when it is whole is thrown away and begun anew, which also counts as a failed try.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench.soaking.exchange import Answer, ask
from bench.soaking.history import History
from bench.soaking.library import Image, Library

_WAITS: Final = (1.0, 2.0, 4.0, 8.0, 16.0)
_LONGEST_WAIT: Final = 20.0
_RESUMES: Final = 3
_AT_ONCE: Final = 3
_SLOW: Final = 256 << 10
#: Blobs for slow readers are no larger: they should end within the run.
_MOST_SLOW: Final = 3 << 20
_MIX: Final = {"pull": 46, "parallel": 12, "range": 14, "slow": 5, "hang-up": 10, "stat": 8, "tags": 5}
#: Failures that are shown in full.
_KEPT: Final = 200


class _Failed(Exception):
    """This try came to nothing. `wait` is what the server asked for, in seconds."""

    def __init__(self, problem: str, wait: float | None = None) -> None:
        super().__init__(problem)
        self.wait = wait


@dataclass(frozen=True, slots=True)
class Failure:
    """What a client gave up: `at` seconds after the begin, with the problem of each try."""

    at: float
    kind: str
    what: str
    #: All of it lay in the store when the client began.
    warm: bool
    problems: tuple[str, ...]


@dataclass(slots=True)
class _Have:
    """What a client has of a blob."""

    offset: int = 0
    #: Some of it is wrong, which shows when it is whole.
    wrong: bool = False


@dataclass(slots=True)
class Clients:
    """Runs clients until `ends` (monotonic seconds). What they saw goes into the history."""

    port: int
    library: Library
    history: History
    blobs: Path
    seed: int
    began: float
    ends: float
    done: Counter[str] = field(default_factory=Counter)
    retried: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    warm_pulls: int = 0
    warm_failed: int = 0
    bad_lists: int = 0

    async def run(self, number: int) -> None:
        """One client, one thing after the other."""
        draw = random.Random(f"client {self.seed} {number}")
        kinds, weights = list(_MIX), list(_MIX.values())
        while time.monotonic() < self.ends:
            kind = draw.choices(kinds, weights)[0]
            image = self.library.choose(draw)
            await self._patiently(kind, image, self._work(kind, image, draw))
            await asyncio.sleep(draw.uniform(0.0, 0.2))

    def _work(self, kind: str, image: Image, draw: random.Random) -> Callable[[], Awaitable[None]]:
        """One try of it; what it has got it keeps for the next."""
        digest = draw.choice(list(image.blobs))
        size = image.blobs[digest]
        match kind:
            case "pull":
                haves = {one: _Have() for one in image.blobs}
                return lambda: self._pull(image, haves)
            case "parallel":
                step = max(1, -(-size // draw.randint(2, 4)))
                parts = [(first, min(size, first + step) - 1) for first in range(0, size, step)]
                return lambda: self._parallel(image, digest, parts)
            case "range":
                first = draw.randrange(size)
                last = draw.randrange(first, size)
                return lambda: self._part(image, digest, first, last, "range")
            case "slow":
                small = [one for one, length in image.blobs.items() if length <= _MOST_SLOW]
                slowly, have = draw.choice(small), _Have()
                return lambda: self._blob(image, slowly, have, "slow", rate=_SLOW)
            case "hang-up":
                after = draw.randrange(size) + 1
                return lambda: self._hang_up(image, digest, after)
            case "stat":
                return lambda: self._stat(image, digest)
        return lambda: self._tags(image)

    async def _patiently(self, kind: str, image: Image, work: Callable[[], Awaitable[None]]) -> None:
        """Try, and try again."""
        warm = kind == "pull" and all(self._is_here(digest) for digest in (*image.blobs, image.digest))
        self.warm_pulls += warm
        problems: list[str] = []
        for wait in (*_WAITS, None):
            try:
                await work()
            except _Failed as error:
                problems.append(f"{time.monotonic() - self.began:.1f} s: {error}")
                if wait is None:
                    break
                self.retried[kind] += 1
                await asyncio.sleep(min(_LONGEST_WAIT, max(wait, error.wait or 0.0)))
            else:
                self.done[kind] += 1
                return
        self.failed[kind] += 1
        self.warm_failed += warm
        if len(self.failures) < _KEPT:
            at = round(time.monotonic() - self.began, 1)
            self.failures.append(Failure(at, kind, f"{image.repository}:{image.tag}", warm, tuple(problems)))

    def _is_here(self, digest: str) -> bool:
        hexadecimal = digest.removeprefix("sha256:")
        return (self.blobs / "sha256" / hexadecimal[:2] / hexadecimal).exists()

    async def _ask(
        self,
        kind: str,
        path: str,
        digest: str | None,
        *,
        method: str = "GET",
        span: tuple[int, int | None] | None = None,
        rate: int | None = None,
        leave_after: int | None = None,
    ) -> Answer:
        content = self.library.contents[digest] if digest is not None else None
        answer = await ask(
            self.port,
            kind,
            path,
            content,
            digest=digest,
            method=method,
            span=span,
            rate=rate,
            leave_after=leave_after,
            began=self.began,
        )
        self.history.add(answer)
        return answer

    # ------------------------------------------------------------------------------------- what is tried

    async def _pull(self, image: Image, haves: dict[str, _Have]) -> None:
        named = await self._ask("tag", image.by_tag, None, method="HEAD")
        _expect(named)
        if named.digest != image.digest:
            raise _Failed(f"the tag names {named.digest}, not {image.digest}")
        manifest = await self._ask("manifest", image.by_digest, image.digest)
        _expect(manifest)
        if manifest.wrong_at is not None:
            raise _Failed("the manifest is wrong")
        turns = asyncio.Semaphore(_AT_ONCE)

        async def one(digest: str) -> None:
            async with turns:
                await self._blob(image, digest, haves[digest], "blob")

        # all of them to their end: what has come is there for the next try
        results = await asyncio.gather(*map(one, image.blobs), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _blob(self, image: Image, digest: str, have: _Have, kind: str, rate: int | None = None) -> None:
        """All of a blob, from where we are on."""
        size, tries = image.blobs[digest], 0
        while have.offset < size:
            span = (have.offset, None) if have.offset else None
            answer = await self._ask(kind, image.blob(digest), digest, span=span, rate=rate)
            if answer.status not in (200, 206):
                raise _Failed(answer.problem, answer.retry_after)
            # with 200 it began anew, and what we have is skipped as it comes again
            have.wrong = have.wrong or answer.wrong_at is not None
            reached = answer.start + answer.received
            tries = 0 if reached > have.offset else tries + 1
            have.offset = max(have.offset, reached)
            if have.offset < size and tries > _RESUMES:
                raise _Failed(answer.problem)
        if have.wrong:
            have.offset, have.wrong = 0, False
            raise _Failed(f"{kind}: not what its digest says, found when it was whole")

    async def _parallel(self, image: Image, digest: str, parts: list[tuple[int, int]]) -> None:
        asked = [self._part(image, digest, first, last, "parallel") for first, last in parts]
        for result in await asyncio.gather(*asked, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    async def _part(self, image: Image, digest: str, first: int, last: int, kind: str) -> None:
        tries, wrong = 0, False
        while first <= last:
            answer = await self._ask(kind, image.blob(digest), digest, span=(first, last))
            if answer.status != 206 and not (answer.status == 200 and answer.promised == image.blobs[digest]):
                raise _Failed(answer.problem, answer.retry_after)
            wrong = wrong or answer.wrong_at is not None
            reached = answer.start + answer.received
            tries = 0 if reached > first else tries + 1
            first = max(first, reached)
            if first <= last and tries > _RESUMES:
                raise _Failed(answer.problem)
        if wrong:
            raise _Failed(f"{kind}: not what its digest says, found when it was whole")

    async def _hang_up(self, image: Image, digest: str, after: int) -> None:
        answer = await self._ask("hang-up", image.blob(digest), digest, leave_after=after)
        if answer.status != 200:
            raise _Failed(answer.problem, answer.retry_after)

    async def _stat(self, image: Image, digest: str) -> None:
        answer = await self._ask("stat", image.blob(digest), digest, method="HEAD")
        _expect(answer)
        if answer.promised != image.blobs[digest]:
            raise _Failed(f"stat: {answer.promised} bytes, not {image.blobs[digest]}")

    async def _tags(self, image: Image) -> None:
        answer = await self._ask("tags", image.tags, None)
        _expect(answer)
        wanted = json.dumps({"name": image.repository, "tags": [image.tag]})
        if answer.promised != len(wanted):
            self.bad_lists += 1
            raise _Failed(f"tags: {answer.promised} bytes, not {len(wanted)}")


def _expect(answer: Answer) -> None:
    if not answer.good:
        raise _Failed(answer.problem, answer.retry_after)
