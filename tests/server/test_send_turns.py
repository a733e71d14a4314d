"""Whose turn it is to send: newcomers do not wait for everybody else's megabytes."""

from __future__ import annotations

import asyncio

from mirror.server.registry.send_turns import SendTurns

_ROUND = 1000


async def _send(turns: SendTurns, name: int, sent: list[int], cost: int, times: int) -> None:
    for _ in range(times):
        await turns.take(cost)
        sent.append(name)


async def test_a_newcomer_waits_for_few_others() -> None:
    """Whatever needs some rounds of the loop meets one large send in each, and not that of every client."""
    turns, sent = SendTurns(_ROUND), list[int]()
    senders = [asyncio.create_task(_send(turns, name, sent, _ROUND, 10)) for name in range(50)]
    # in this round all senders ask for their first turn
    await asyncio.sleep(0)
    rounds = 10
    for _ in range(rounds):
        await asyncio.sleep(0)
    assert len(sent) <= rounds
    await asyncio.gather(*senders)
    assert len(sent) == 500


async def test_turns_go_round() -> None:
    """First come, first served: nobody has many turns before all others have had their first."""
    turns, sent = SendTurns(_ROUND), list[int]()
    await asyncio.gather(*(_send(turns, name, sent, _ROUND, 3) for name in range(7)))
    # the first sender does not wait for its first turn, and so is one turn ahead of the others
    assert sent == [0, *range(7), *range(7), *range(1, 7)]


async def test_one_that_sends_alone_waits_for_full_rounds_only() -> None:
    """A fast client that has the process to itself costs no round of the loop for each piece."""
    turns, sent = SendTurns(_ROUND), list[int]()
    sender = asyncio.create_task(_send(turns, 0, sent, _ROUND // 4, 8))
    await asyncio.sleep(0)
    assert len(sent) == 4
    await sender
    assert len(sent) == 8


async def test_many_small_sends_share_a_round() -> None:
    """Clients that take little at a time do not cost a round of the loop each."""
    turns, sent = SendTurns(_ROUND), list[int]()
    for name in range(30):
        asyncio.get_running_loop().create_task(_send(turns, name, sent, _ROUND // 10, 1))
    rounds = 0
    while len(sent) < 30:
        await asyncio.sleep(0)
        rounds += 1
    assert rounds <= 8


async def test_one_that_leaves_takes_no_turn() -> None:
    """A client that is gone while it waits keeps nobody waiting, and the turns end with the last client."""
    turns, sent = SendTurns(_ROUND), list[int]()
    senders = [asyncio.create_task(_send(turns, name, sent, _ROUND, 1)) for name in range(6)]
    await asyncio.sleep(0)
    for leaving in senders[1:5]:
        leaving.cancel()
    await asyncio.wait(senders)
    assert sent == [0, 5]
    assert [sender.cancelled() for sender in senders] == [False, True, True, True, True, False]
    # a round in which nobody sends is the last one that is counted
    for _ in range(3):
        await asyncio.sleep(0)
    assert not turns._counts
    assert repr(turns) == f"<SendTurns 0 waiting, {_ROUND} of {_ROUND} bytes left>"


async def test_a_round_has_few_sends_however_small() -> None:
    """One that sends a thousand small parts lets the loop come round meanwhile."""
    turns, sent = SendTurns(), list[int]()
    sender = asyncio.create_task(_send(turns, 0, sent, 1, 1000))
    await asyncio.sleep(0)
    assert 0 < len(sent) <= 100
    await sender
    assert len(sent) == 1000
