"""What a `RegistryUpstream` is built with, apart from its endpoint and its credentials."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from mirror.errors import UpstreamError
from mirror.policy.upstream.budget import Budget
from mirror.upstream.http.client import Observe
from mirror.upstream.http.page_file import ListBounds


@dataclass(frozen=True, slots=True)
class Limits:
    """`retries` are the most further tries of one call if upstream answers 5xx or breaks off. `blobs_at_once` and
    `calls_at_once` limit the blobs and the small calls under way; each connection of a blob counts as one, and
    `connections_per_blob` limits those of one blob. `lists` limits tag lists, and may be shared.
    """

    retries: int = 2
    blobs_at_once: int = 32
    calls_at_once: int = 64
    connections_per_blob: int = 1
    lists: ListBounds = field(default_factory=ListBounds)


@dataclass(frozen=True, slots=True)
class Hooks:
    """Functions that an upstream calls.

    `observe` is called for each request, `on_budget` with the pulls that upstream still allows us, `on_failure` with
    the error of each call that failed after all tries, except `UpstreamNotFound`, and `on_whole` for each request for a
    part of a blob in whose place the whole has come. `whose` gives the caller on whose behalf a call is made, "" for
    the mirror's own account.
    """

    observe: Observe = lambda event, status, seconds: None
    on_budget: Callable[[Budget], None] = lambda budget: None
    on_failure: Callable[[UpstreamError], None] = lambda error: None
    on_whole: Callable[[], None] = lambda: None
    whose: Callable[[], str] = lambda: ""


@dataclass(slots=True)
class Clocks:
    """The time, and the waits between tries. `now` gives epoch seconds, `monotonic` counts seconds.

    They are looked up at each use, so that a test can replace them while a mirror runs.
    """

    now: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    jitter: Callable[[], float] = random.random
