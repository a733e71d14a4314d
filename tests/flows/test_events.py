"""Events of a mirror in this process, as an endpoint gets them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mirror.config import redacted_settings
from mirror.errors import RequestError
from mirror.oci.digest import Digest
from mirror.ports import WaitingEvent
from tests.support.event_receiver import EventReceiver
from tests.support.fake_registry import FakeRegistry
from tests.support.live_mirror import LiveMirror, live_mirror, until
from tests.support.push_client import PushClient, hosting_mirror
from tests.support.scripted import reply

_PUSHED, _DELETED, _RETAGGED = "mirror.image.pushed", "mirror.image.deleted", "mirror.image.retagged"


def _types(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("mirror.") for event in events]


async def test_a_push_a_move_and_deletions_are_reported_in_order(tmp_path: Path, receiver: EventReceiver) -> None:
    """Each change leads to its events, signed, with what receivers need to act on them."""
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


async def test_an_endpoint_that_is_down_costs_no_push(tmp_path: Path, receiver: EventReceiver) -> None:
    """Events wait, and come in order, each once, when it is back."""
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


async def test_what_is_no_change_of_a_hosted_repository_is_reported_too(tmp_path: Path) -> None:
    """Pulls, a tag that upstream moved, a damaged blob, an upstream that goes and comes back."""
    with FakeRegistry() as upstream, EventReceiver(tmp_path) as receiver:
        first = upstream.add_image("library/app", "1", [b"one" * 1000])
        events = {"sample_pulls": 1, "endpoint": [receiver.settings(events=["*"])]}
        routes = [{"match": "**", "tag_ttl": "0s"}]
        async with live_mirror(tmp_path / "store", {"docker.io": upstream.url}, events=events, route=routes) as mirror:
            assert (await mirror.ask("/v2/library/app/manifests/1")).status == 200
            second = upstream.add_image("library/app", "1", [b"two" * 1000])
            assert (await mirror.ask("/v2/library/app/manifests/1")).status == 200
            await receiver.got(lambda events: len(events) == 3)
            [moved] = receiver.of("mirror.tag.moved")
            assert (moved["data"]["from"], moved["data"]["to"]) == (str(first), str(second))
            assert [event["data"]["digest"] for event in receiver.of("mirror.image.pulled")] == [
                str(first),
                str(second),
            ]

            layer = Digest.of(b"two" * 1000)
            assert (await mirror.ask(f"/v2/library/app/blobs/{layer}")).status == 200
            await mirror.landed(layer)
            mirror.blob_file(layer).chmod(0o600)
            mirror.blob_file(layer).write_bytes(b"damaged")
            assert (await mirror.ask(f"/v2/library/app/blobs/{layer}")).status == 200
            await until(lambda: receiver.of("mirror.blob.damaged") or None)
            assert receiver.of("mirror.blob.damaged")[0]["data"]["digest"] == str(layer)

            upstream.away()
            for _ in range(4):
                await mirror.ask("/v2/library/other/manifests/1")
            await until(lambda: receiver.of("mirror.upstream.down") or None)
            upstream.back()
            mirror.clock.forward(60)
            await mirror.ask("/v2/library/other/manifests/1")
            await until(lambda: receiver.of("mirror.upstream.up") or None)
    assert receiver.of("mirror.upstream.up")[0]["data"]["upstream"] == "docker.io"
    assert not receiver.problems


async def test_the_admin_api_and_the_metrics_show_what_waits(tmp_path: Path, receiver: EventReceiver) -> None:
    """By the endpoint's name; its URL and its secret are nowhere."""
    receiver.answer(reply(400, b"no"))
    async with hosting_mirror(tmp_path, events={"endpoint": [receiver.settings()]}) as mirror:
        await PushClient(mirror).push_image("v1", b"one")
        listed = await until(lambda: _dead(mirror) or None)
        admin = mirror.app.admin._events
        found = await admin.events({"dead": "true"})
        assert [event["id"] for event in found["events"]] == [event.id for event in listed]
        assert (found["endpoints"][0]["dead"], found["events"][0]["error"]) == (1, "status 400")
        assert (await admin.events({"dead": "false"}))["events"] == []
        receiver.answer(reply(204))
        assert await admin.resend({"endpoint": "ci"}) == {"resent": 1}
        await receiver.got(lambda events: len(events) == 1)
        with pytest.raises(RequestError, match="no endpoint"):
            await admin.resend({"endpoint": "nobody"})
        with pytest.raises(RequestError, match="limit"):
            await admin.events({"limit": "0"})
        shown = json.dumps(redacted_settings(mirror.config))
        log = mirror.log_text
    for text in (shown, log):
        assert "hidden" not in text
        assert "between us" not in text


def _dead(mirror: LiveMirror) -> Sequence[WaitingEvent]:
    """Time passes, until the event was refused for good."""
    mirror.clock.forward(2)
    outbox = mirror.app.storage.hosted.outbox
    assert outbox is not None
    return outbox.listed(endpoint="ci", dead=True, most=10)
