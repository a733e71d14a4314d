"""Events of a replica that is gone with its disk, and its work for all: real replicas, a real object store."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.bucket_site import HOSTED
from tests.support.cluster_site import ClusterSite
from tests.support.engines.seaweedfs import SeaweedFS
from tests.support.event_receiver import EventReceiver
from tests.support.process import eventually
from tests.support.scripted import reply


def _events(receiver: EventReceiver) -> str:
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in receiver.settings().items()}
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    return "\n".join([HOSTED, "[[events.endpoint]]", *lines])


def test_events_of_a_replica_that_was_ended_are_delivered_by_another(seaweedfs: SeaweedFS, tmp_path: Path) -> None:
    """Its endpoint took nothing until then, and its disk is lost. SIGTERM hands over; nobody waits for a minute."""
    with EventReceiver(tmp_path) as receiver:
        receiver.answer(reply(503, b""))
        with ClusterSite(tmp_path, seaweedfs, replicas=2, more=_events(receiver)) as site:
            site.start()
            ended, stays = site.at(0), site.at(1)
            ended.push("corp/app", "v1", b"layer")
            eventually(lambda: bool(receiver.seen), "the endpoint is sent the event")
            ended.stop()
            ended.wipe()
            receiver.answer(reply(204, b""))
            eventually(lambda: bool(receiver.events), "another replica sends the event")
            assert {event["type"] for event in receiver.events} == {"mirror.image.pushed"}
            assert receiver.events[0]["data"]["tags"] == ["v1"]
            status = json.loads(stays.command("status", "--json").out)
            assert status["cluster"]["clock_offset"] is not None
            holders = {lease["work"]: lease["holder"] for lease in status["cluster"]["leases"]}
            assert holders["adoption of events"] == stays.member
