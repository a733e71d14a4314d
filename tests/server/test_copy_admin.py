"""Copies that callers of the admin API ask for: how many run at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from mirror.errors import AlreadyRunning
from mirror.oci.reference import Repo
from mirror.policy.access_rules import AuthMethod, Identity
from mirror.policy.image_names import Image
from mirror.policy.routing import RoutingTable
from mirror.replication.copy_order import CopyOrder
from mirror.replication.copy_run import Copies, CopyResult
from mirror.server.admin.copy_admin import CopyAdmin


class _Slow(Copies):
    """Copies that end when they are let go."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()

    async def copy(self, *arguments: Any) -> CopyResult:
        await self.gate.wait()
        return CopyResult()


def _parse(text: str, is_visible: Callable[[Repo], bool]) -> Image:
    raise AssertionError(text)


def _order(caller: str) -> CopyOrder:
    return CopyOrder(Repo("corp", "a"), "v1", Repo("corp", "b"), "v1", caller=caller)


async def test_one_caller_leaves_room_for_others() -> None:
    """Two of the four copies of a worker, at most; an operator at the socket may use all that are left."""
    slow = _Slow()
    admin = CopyAdmin(slow, RoutingTable(None), _parse, cast(Any, object()))
    greedy, other = Identity("greedy", AuthMethod.ROBOT), Identity("other", AuthMethod.ROBOT)

    async def begin(identity: Identity | None) -> asyncio.Task[Any]:
        task = asyncio.ensure_future(admin.copy(_order(str(identity)), identity))
        # nothing waits before the copy begins, or is refused
        await asyncio.sleep(0)
        return task

    running = [await begin(greedy), await begin(greedy)]
    with pytest.raises(AlreadyRunning, match="your"):
        await (await begin(greedy))
    running.append(await begin(other))
    running.append(await begin(None))
    with pytest.raises(AlreadyRunning, match="4"):
        await (await begin(other))
    slow.gate.set()
    await asyncio.gather(*running)
    assert repr(admin) == "<CopyAdmin running=0>"
    await (await begin(greedy))
