"""Whatever happens to one thing that is closed, the others are closed as well."""

from __future__ import annotations

import ast
import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Final, cast

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


def test_every_async_generator_is_closed_by_who_reads_it() -> None:
    """One that is left early, by an error or a cancellation, ends only when the garbage collector finds it: until then
    it keeps its file, its connection or its turn.
    """
    assert [*_left_open(_MIRROR)] == []


def test_a_reader_that_closes_nothing_is_found(tmp_path: Path) -> None:
    (tmp_path / "reader.py").write_text(
        """
async def good(given):
    async with aclosing(pages()) as read:
        async for page in read:
            print(page, await anext(given))

async def bad():
    async for page in pages():
        print(page)
    first = pages()
    print(await anext(first), [page async for page in first])
"""
    )
    assert [*_left_open(tmp_path)] == ["reader.py:8", "reader.py:11", "reader.py:11"]


#: What they return is no generator: there is nothing to close.
_PLAIN: Final = frozenset({"iter_any", "batches_in_thread"})


def _left_open(root: Path) -> Iterator[str]:
    """Where something is read that neither the function itself closes nor its caller, who has given it."""
    for path in sorted(root.rglob("*.py")):
        tree = ast.parse(path.read_text())
        for parent in ast.walk(tree):
            if not isinstance(parent, ast.Module | ast.ClassDef):
                continue
            for function in parent.body:
                if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                    nodes = [*ast.walk(function)]
                    closed = {*_given(nodes), *_closed(nodes)}
                    for read in _read(nodes):
                        if not (isinstance(read, ast.Name) and read.id in closed) and _called(read) not in _PLAIN:
                            yield f"{path.relative_to(root)}:{read.lineno}"


def _read(nodes: list[ast.AST]) -> Iterator[ast.expr]:
    for node in nodes:
        if isinstance(node, ast.AsyncFor) or (isinstance(node, ast.comprehension) and node.is_async):
            yield node.iter
        elif isinstance(node, ast.Call) and _called(node) == "anext":
            yield node.args[0]


def _given(nodes: list[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.arg):
            yield node.arg


def _closed(nodes: list[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.withitem) and _called(node.context_expr) == "aclosing":
            named = node.optional_vars, *cast(ast.Call, node.context_expr).args
            yield from (each.id for each in named if isinstance(each, ast.Name))
        elif isinstance(node, ast.Attribute) and node.attr == "aclose" and isinstance(node.value, ast.Name):
            yield node.value.id


def _called(node: ast.expr) -> str:
    """The name of what this calls; empty if it calls nothing."""
    if not isinstance(node, ast.Call):
        return ""
    called = node.func
    return called.id if isinstance(called, ast.Name) else called.attr if isinstance(called, ast.Attribute) else ""
