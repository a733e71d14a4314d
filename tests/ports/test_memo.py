"""Answers asked once and remembered for a while, in memory and in a real Redis."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from mirror.aio.memo import MEMO_TAG, MISSING, Memo, redis_cache
from mirror.index.redis_address import RedisAddress, parse_redis_url
from mirror.index.redis_primary import RedisPool
from tests.support.clock import Clock
from tests.support.redis_server import RedisServer


class Maker:
    """Makes values when let, and counts."""

    def __init__(self, value: Any = "made", error: Exception | None = None) -> None:
        self.value, self.error = value, error
        self.calls = 0
        self.let = asyncio.Event()

    async def __call__(self) -> Any:
        self.calls += 1
        await self.let.wait()
        if self.error:
            raise self.error
        return self.value


@pytest.fixture
async def memo(clock: Clock) -> AsyncIterator[Memo]:
    memo = Memo(now=clock)
    yield memo
    await memo.aclose()


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
async def pair(server: RedisServer, clock: Clock) -> AsyncIterator[tuple[Memo, Memo]]:
    """Two processes' memos on one empty Redis."""
    server.command("FLUSHALL")
    # a busy machine must not make a healthy Redis look slow
    memos = (
        Memo(shared=server.cache(budget=20), budget=20, now=clock),
        Memo(shared=server.cache(budget=20), budget=20, now=clock),
    )
    yield memos
    for memo in memos:
        await memo.aclose()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_one_makes_it_for_all(memo: Memo) -> None:
    """Faults row 64: a thousand who ask at once cause one call, and the next thousand none."""
    make = Maker({"a": [1, 2.5, None, "x"]})
    asking = [asyncio.create_task(memo.share("key", make, 60)) for _ in range(1000)]
    await settle()
    make.let.set()
    answers = await asyncio.gather(*asking)
    assert answers == [{"a": [1, 2.5, None, "x"]}] * 1000
    assert await memo.share("key", make, 60) == {"a": [1, 2.5, None, "x"]}
    assert make.calls == 1


async def test_keys_are_apart(memo: Memo) -> None:
    """Different keys do not wait for each other."""
    slow, quick = Maker(), Maker("quick")
    quick.let.set()
    waiting = asyncio.create_task(memo.share("slow", slow, 60))
    assert await memo.share("quick", quick, 60) == "quick"
    slow.let.set()
    assert await waiting == "made"


async def test_the_first_caller_leaves(memo: Memo) -> None:
    """Its cancellation ends its own waiting; the others get their answer from the same call."""
    make = Maker()
    asking = [asyncio.create_task(memo.share("key", make, 60)) for _ in range(5)]
    await settle()
    asking[0].cancel()
    await settle()
    assert asking[0].cancelled()
    make.let.set()
    assert await asyncio.gather(*asking[1:]) == ["made"] * 4
    assert make.calls == 1


async def test_all_callers_leave(memo: Memo) -> None:
    """The call goes on and its answer is remembered; an error that nobody waits for raises no warning."""
    good, bad = Maker(), Maker(error=RuntimeError("unseen"))
    asking = [asyncio.create_task(memo.share(key, make, 60)) for key, make in (("good", good), ("bad", bad))]
    await settle()
    for task in asking:
        task.cancel()
    await settle()
    good.let.set()
    bad.let.set()
    await settle()
    gc.collect()
    assert await memo.get("good") == "made"
    assert await memo.get("bad") is MISSING
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_an_error_reaches_all_and_is_forgotten(memo: Memo) -> None:
    """Faults row 12: errors are never cached; the next who asks tries anew."""
    make = Maker(error=LookupError("no"))
    make.let.set()
    answers = await asyncio.gather(*(memo.share("key", make, 60) for _ in range(5)), return_exceptions=True)
    assert [str(answer) for answer in answers] == ["no"] * 5
    make.error = None
    assert await memo.share("key", make, 60) == "made"
    assert make.calls == 2


async def test_an_answer_has_its_time(memo: Memo, clock: Clock) -> None:
    """Remembered until its time is over, which may depend on the value; no time, no memory."""
    make = Maker(30)
    make.let.set()
    await memo.share("key", make, lambda value: value * 2.0)
    clock.time += 59.9
    assert await memo.get("key") == 30
    clock.time += 0.1
    assert await memo.get("key") is MISSING
    await memo.share("key", make, 60)
    assert make.calls == 2
    await memo.share("none", make, 0)
    assert await memo.get("none") is MISSING


async def test_put_and_forget(memo: Memo) -> None:
    """A refusal can be remembered as a value; None is a value too; forgetting is repeatable."""
    await memo.put("key", None, 60)
    assert await memo.get("key") is None
    assert await memo.share("key", Maker(), 60) is None
    await memo.forget("key")
    await memo.forget("key")
    assert await memo.get("key") is MISSING


async def test_only_json_is_remembered(memo: Memo) -> None:
    """Nothing else has a form that is safe to read back."""
    with pytest.raises(TypeError):
        await memo.put("key", object(), 60)
    with pytest.raises(ValueError, match="JSON"):
        await memo.put("key", float("nan"), 60)
    value = ["a"]
    await memo.put("key", value, 60)
    value.append("changed afterwards")
    assert await memo.get("key") == ["a"]


async def test_endless_keys_are_bounded(clock: Clock) -> None:
    """Faults row 81: the least recently used leave; what is asked for stays."""
    memo = Memo(most_entries=100, now=clock)
    await memo.put("wanted", 1, 60)
    for number in range(5000):
        await memo.put(f"key {number}", number, 60)
        assert await memo.get("wanted") == 1
    assert memo.stats().entries == 100
    assert await memo.get("key 4999") == 4999
    assert await memo.get("key 4000") is MISSING


async def test_bytes_are_bounded(clock: Clock) -> None:
    """Faults row 81: many large values, and one that is too large for the whole."""
    memo = Memo(most_bytes=80_000, now=clock)
    for number in range(100):
        await memo.put(f"key {number}", "x" * 5000, 60)
    assert memo.stats().entries == 15
    await memo.put("huge", "x" * 20_000, 60)
    assert await memo.get("huge") is MISSING
    assert memo.stats().entries == 15


async def test_closing_ends_what_is_under_way(clock: Clock) -> None:
    """No task outlives the memo; closing is repeatable."""
    memo = Memo(now=clock)
    waiting = asyncio.create_task(memo.share("key", Maker(), 60))
    await settle()
    await memo.aclose()
    await memo.aclose()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_redis_is_shared(pair: tuple[Memo, Memo], clock: Clock) -> None:
    """What one process was told the other knows, for the same time; a new question goes out once its time is over."""
    one, other = pair
    make = Maker({"a": "ü"})
    make.let.set()
    assert await one.share("key", make, 60) == {"a": "ü"}
    assert await other.share("key", make, 60) == {"a": "ü"}
    assert make.calls == 1
    clock.time += 61
    assert await other.share("key", make, 60) == {"a": "ü"}
    assert make.calls == 2
    await one.forget("key")
    assert await one.get("key") is MISSING


async def test_redis_forgets_by_itself(server: RedisServer, pair: tuple[Memo, Memo]) -> None:
    """Each key has a time to live in Redis, in whole and in parts of a second."""
    await pair[0].put("key", 1, 60)
    await pair[0].put("short", 1, 0.0001)
    milliseconds = int(server.command("PTTL", "{mirror:memo}:1:key")[1:])
    assert 0 < milliseconds <= 60_000


async def test_private_answers_stay_here(server: RedisServer, pair: tuple[Memo, Memo]) -> None:
    """A token never gets into Redis, nor does a value from Redis pass for one."""
    one, other = pair
    make = Maker("canary")
    make.let.set()
    assert await one.share("key", make, 60, private=True) == "canary"
    await one.put("put", "canary", 60, private=True)
    assert server.command("DBSIZE") == b":0\r\n"
    await other.put("forged", "public", 60)
    assert await one.get("forged", private=True) is MISSING
    make.value = "own"
    assert await one.share("forged", make, 60, private=True) == "own"


@pytest.mark.parametrize("junk", ["", "junk", "[]", "5", "[1e12]", '{"a":1}', '["x","y"]', "\x80\x04N."])
async def test_junk_in_redis_is_a_miss(server: RedisServer, pair: tuple[Memo, Memo], junk: str) -> None:
    """Faults row 54: what somebody else wrote there is not believed, least of all unpickled."""
    server.command("SET", "{mirror:memo}:1:key", junk)
    assert await pair[0].get("key") is MISSING
    make = Maker()
    make.let.set()
    assert await pair[0].share("key", make, 60) == "made"


async def fails_over(memo: Memo) -> None:
    make = Maker()
    make.let.set()
    assert await memo.share("key", make, 60) == "made"
    assert await memo.share("key", make, 60) == "made"
    assert make.calls == 1
    await memo.put("put", 1, 60)
    assert await memo.get("put") == 1
    await memo.forget("put")
    assert await memo.get("put") is MISSING


async def test_redis_absent(tmp_path: Any, clock: Clock) -> None:
    """Faults row 46: without Redis everything works from memory."""
    memo = Memo(
        shared=redis_cache(
            RedisPool(RedisAddress(socket=f"{tmp_path}/none.sock"), MEMO_TAG, connections=8, budget=0.1)
        ),
        now=clock,
    )
    await fails_over(memo)
    await memo.aclose()


@pytest.mark.parametrize("harm", [RedisServer.kill, RedisServer.pause])
async def test_redis_dies_or_hangs(harm: Callable[[RedisServer], None], clock: Clock) -> None:
    """Faults rows 47 and 48: it costs one budget, then it is left alone for a while, and used again when it is back."""
    with RedisServer() as server:
        memo = Memo(shared=server.cache(), now=clock)
        await memo.put("before", 1, 60)
        harm(server)
        await fails_over(memo)
        if harm is RedisServer.kill:
            server.start()
        else:
            server.resume()
        clock.time += 2
        other = Memo(shared=server.cache(budget=20), budget=20, now=clock)
        for _ in range(200):
            await memo.put("after", 2, 60)
            if await other.get("after") == 2:
                break
            clock.time += 2
        assert await other.get("after") == 2
        await memo.aclose()
        await other.aclose()


@pytest.mark.parametrize(
    "url",
    ["redis://localhost:1", "rediss://localhost:1", "redis+sentinel://localhost:1/x", "redis+cluster://localhost:1"],
)
async def test_nothing_is_dialled_before_its_first_use(url: str) -> None:
    """Every kind of Redis that is not there costs nothing but its use."""
    memo = Memo(shared=redis_cache(RedisPool(parse_redis_url(url), MEMO_TAG, connections=1, budget=0.1)))
    await memo.put("key", 1, 60)
    assert await memo.get("key") == 1
    await memo.aclose()
