"""Events of a mirror in this process, as an endpoint gets them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mirror.oci.digest import Digest
from tests.support.event_receiver import EventReceiver
from tests.support.live_mirror import LiveMirror, until
from tests.support.push_client import PushClient, hosting_mirror
from tests.support.scripted import reply

_PUSHED, _DELETED, _RETAGGED = "mirror.image.pushed", "mirror.image.deleted", "mirror.image.retagged"


def _types(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("mirror.") for event in events]


async def test_a_push_a_move_and_deletions_are_reported_in_order(tmp_path: Path) -> None:
    """Each change leads to its events, signed, with what receivers need to act on them."""
    with EventReceiver(tmp_path) as receiver:
        events = {"source": "eu-west", "endpoint": [receiver.settings()]}
        async with hosting_mirror(tmp_path, events=events) as mirror:
            client = PushClient(mirror)
            first = await client.push_image("v1", b"one")
            second = await client.push_image("v1", b"two")
            assert (await client.ask("DELETE", "/v2/corp/app/manifests/v1")).status == 202
            assert (await client.ask("DELETE", f"/v2/corp/app/manifests/{Digest.of(first)}")).status == 202
            taken = await receiver.got(lambda events: len(events) == 5)
    assert _types(taken) == ["image.pushed", "image.pushed", "image.retagged", "tag.deleted", "image.deleted"]
    pushed, _, moved, untagged, deleted = (event["data"] for event in taken)
    assert pushed["repository"] == "app"
    assert (pushed["registry"], pushed["tags"], pushed["digest"]) == ("corp", ["v1"], str(Digest.of(first)))
    assert (moved["tag"], moved["from"], moved["to"]) == ("v1", str(Digest.of(first)), str(Digest.of(second)))
    assert (untagged["tag"], untagged["digest"]) == ("v1", str(Digest.of(second)))
    assert (deleted["digest"], deleted["tags"]) == (str(Digest.of(first)), [])
    assert {event["source"] for event in taken} == {"eu-west"}
    assert {event["subject"] for event in taken} == {"corp/app"}
    assert len({event["id"] for event in taken}) == 5
    order = [event["sequence"] for event in taken]
    assert order == sorted(set(order))


async def test_an_endpoint_that_is_down_costs_no_push(tmp_path: Path) -> None:
    """Events wait, and come in order, each once, when it is back."""
    with EventReceiver(tmp_path) as receiver:
        receiver.answer(reply(503, b"away"))
        async with hosting_mirror(tmp_path, events={"endpoint": [receiver.settings()]}) as mirror:
            client = PushClient(mirror)
            digests = [str(Digest.of(await client.push_image("v1", b"%d" % number))) for number in range(3)]
            await until(lambda: receiver.seen or None)
            receiver.answer(reply(204, b""))
            await until(lambda: (_later(mirror) and len(receiver.of(_PUSHED)) == 3) or None)
    assert [event["data"]["digest"] for event in receiver.of(_PUSHED)] == digests


def _later(mirror: LiveMirror) -> bool:
    """Time passes, so that the next attempt is due."""
    mirror.clock.forward(301)
    return True


async def test_without_endpoints_nothing_is_written(tmp_path: Path) -> None:
    """No folder, no file, no thread."""
    async with hosting_mirror(tmp_path) as mirror:
        await PushClient(mirror).push_image("v1", b"one")
        assert not (mirror.root / "events").exists()
