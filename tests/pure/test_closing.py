"""Whatever happens to one thing that is closed, the others are closed as well."""

from __future__ import annotations

import ast
import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from mirror.aio.closing import close_all

_MIRROR: Final = Path(__file__).resolve().parents[2] / "mirror"

_WAITS: Final = (ast.Await, ast.AsyncFor, ast.AsyncWith)


def _failing(done: list[str], name: str, error: BaseException) -> Callable[[], Awaitable[None]]:
    async def step() -> None:
        done.append(name)
        raise error

    return step


async def test_all_steps_are_done_in_order() -> None:
    done: list[str] = []
    with pytest.raises(ValueError, match="first"):
        await close_all(
            _failing(done, "one", ValueError("first")),
            _failing(done, "two", ValueError("second")),
            lambda: done.append("three"),
        )
    assert done == ["one", "two", "three"]


async def test_a_cancellation_is_not_lost_behind_an_error() -> None:
    done: list[str] = []
    with pytest.raises(asyncio.CancelledError):
        await close_all(
            _failing(done, "one", ValueError("first")),
            _failing(done, "two", asyncio.CancelledError()),
            lambda: done.append("three"),
        )
    assert done == ["one", "two", "three"]


async def test_a_second_cancellation_skips_nothing() -> None:
    done: list[str] = []
    waiting = asyncio.Event()

    async def wait() -> None:
        waiting.set()
        await asyncio.Event().wait()

    async def run() -> None:
        try:
            await wait()
        finally:
            await close_all(wait, lambda: done.append("closed"))

    running = asyncio.ensure_future(run())
    for _ in range(2):
        await waiting.wait()
        waiting.clear()
        running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert done == ["closed"]


def test_no_end_skips_what_comes_after_a_failed_step() -> None:
    """What `aclose` or `finally` does after something that it waited for is done by `close_all`, or in a `finally`."""
    assert [*_skipped()] == []


def _skipped() -> Iterator[str]:
    for path in sorted(_MIRROR.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            block: list[ast.stmt] = []
            if isinstance(node, ast.AsyncFunctionDef) and node.name == "aclose":
                block = node.body
            elif isinstance(node, ast.Try):
                block = node.finalbody
            waiting = [
                statement for statement in block if any(isinstance(each, _WAITS) for each in ast.walk(statement))
            ]
            if waiting and (waiting[0] is not block[-1] or isinstance(waiting[0], ast.For | ast.AsyncFor)):
                yield f"{path.relative_to(_MIRROR)}:{waiting[0].lineno}"
