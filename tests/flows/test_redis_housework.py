"""What a running mirror says in Redis without being asked: that its store is in use."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from mirror.aio.singleflight import cancel_and_wait
from mirror.app import housekeeping
from mirror.app.storage import open_storage
from mirror.config import load
from mirror.errors import StoreError
from mirror.rounds import begin
from tests.support.redis_server import RedisServer


async def test_a_store_that_cannot_be_swept_is_in_use_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise its index would be deleted after some days, under clients that pull from it."""
    tried = asyncio.Event()
    loop = asyncio.get_running_loop()

    def sweep(*_arguments: object, **_named: object) -> None:
        loop.call_soon_threadsafe(tried.set)
        raise StoreError("a folder cannot be read")

    monkeypatch.setattr(housekeeping, "sweep_and_report", sweep)
    with RedisServer() as server:
        config = tmp_path / "mirror.toml"
        config.write_text(
            f'[store]\nroot = "{tmp_path / "store"}"\n[index]\nurl = "{server.url}"\ntimeout = 60\n', encoding="utf-8"
        )
        loaded = load(config)
        async with open_storage(loaded) as storage:
            work = begin(housekeeping.run_housekeeping(loaded, storage))
            await tried.wait()
            await cancel_and_wait(work)
            alive = await asyncio.to_thread(server.command, "EXISTS", f"{{mirror:3:{storage.store.id}}}:alive")
        assert alive.startswith(b":1")
