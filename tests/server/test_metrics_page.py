"""The page of metrics, for which nobody has to log in."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import pytest
from aiohttp import web

from mirror import telemetry
from mirror.server.probes import MetricsPage, Readiness, health_pages
from tests.support.live_mirror import PATIENCE

_REQUEST = cast(web.BaseRequest, None)


async def test_many_who_ask_hold_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the counters are added up, others are answered. Whoever asks meanwhile gets numbers that are added up after
    that, once for all of them.
    """
    begun, go_on = threading.Event(), threading.Event()
    made = 0

    def render() -> bytes:
        nonlocal made
        made += 1
        begun.set()
        assert go_on.wait(PATIENCE)
        return b"%d" % made

    monkeypatch.setattr(telemetry, "render_metrics", render)
    pages = health_pages(Readiness())

    async def ask() -> object:
        return cast(web.Response, await pages["/metrics"](_REQUEST)).body

    first = asyncio.create_task(ask())
    await asyncio.to_thread(begun.wait, PATIENCE)
    assert (await pages["/readyz"](_REQUEST)).status == 200
    others = [asyncio.create_task(ask()) for _ in range(50)]
    await asyncio.sleep(0)
    go_on.set()
    assert await first == b"1"
    assert await asyncio.gather(*others) == [b"2"] * 50


async def test_it_rests_between() -> None:
    """Three times as long as it took; not before the first one, nor after a time in which nobody asked."""
    now, rests = 0.0, list[float]()

    def render() -> bytes:
        nonlocal now
        now += 2.0
        return b"x"

    async def sleep(seconds: float) -> None:
        nonlocal now
        rests.append(seconds)
        now += seconds

    page = MetricsPage(render, clock=lambda: now, worked=lambda: now, sleep=sleep)
    for _ in range(3):
        await page(_REQUEST)
    assert rests == [6.0, 6.0]
    now += 6.0
    await page(_REQUEST)
    assert rests == [6.0, 6.0]


async def test_it_rests_from_its_own_work_alone() -> None:
    """Where everything takes long, as on an overloaded machine, two who ask in turn do not wait for each other's."""
    now = worked = 0.0
    rests = list[float]()

    def render() -> bytes:
        nonlocal now, worked
        now, worked = now + 9.0, worked + 0.5
        return b"x"

    async def sleep(seconds: float) -> None:
        nonlocal now
        rests.append(seconds)
        now += seconds

    page = MetricsPage(render, clock=lambda: now, worked=lambda: worked, sleep=sleep)
    await page(_REQUEST)
    await page(_REQUEST)
    assert rests == [1.5]


async def test_an_error_is_that_of_one() -> None:
    """Who asks next has the counters added up again."""
    texts: list[bytes] = []

    def render() -> bytes:
        if not texts:
            texts.append(b"later")
            raise OSError("no room")
        return texts[0]

    page = MetricsPage(render)
    with pytest.raises(OSError, match="no room"):
        await page(_REQUEST)
    assert cast(web.Response, await page(_REQUEST)).body == b"later"


async def test_threads_that_wait_for_the_disk_do_not_delay_it() -> None:
    """While the disk hangs, operators see in the metrics what is wrong."""
    go_on = threading.Event()
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1) as threads:
        loop.set_default_executor(threads)
        try:
            hanging = asyncio.create_task(asyncio.to_thread(go_on.wait, PATIENCE))
            await asyncio.sleep(0)
            page = MetricsPage(lambda: b"x")
            async with asyncio.timeout(PATIENCE / 2):
                assert cast(web.Response, await page(_REQUEST)).body == b"x"
        finally:
            go_on.set()
        assert await hanging
