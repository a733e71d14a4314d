"""Events of a mirror as users run it: several workers, commands beside it, and commands while it is off."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.support.event_receiver import EventReceiver
from tests.support.images import sha256
from tests.support.mirror_process import MirrorProcess, write_config
from tests.support.process import eventually, run
from tests.support.scripted import reply
from tests.support.step_client import StepClient

_MORE = """
[[hosted]]
name = "corp"
[[access.rule]]
effect = "allow"
callers = ["*"]
actions = ["pull", "push", "overwrite", "delete"]
[[events.endpoint]]
name = "ci"
url = "{url}"
secret_file = "{secret}"
"""


def test_two_workers_and_commands(tmp_path: Path, receiver: EventReceiver) -> None:
    """Each event comes once and in order, whichever worker took the push; commands show what waits, and send it again;
    what is deleted while no mirror runs is reported by the next one.
    """
    more = _MORE.format(url=receiver.url, secret=receiver.secret_file)
    config = write_config(tmp_path, {}, workers=2, more=more)

    def cli(*words: str) -> str:
        return run([sys.executable, "-m", "mirror", *words, "--config", config]).decode()

    with MirrorProcess(config) as mirror:
        clients = [StepClient(mirror.port, number) for number in range(1, 4)]
        for client in clients:
            client.push_both()
            assert client.put_manifest("v1", client.second)
        eventually(lambda: len(receiver.events) == 12, "every push is reported")
        assert not receiver.problems
        for client in clients:
            told = [event for event in receiver.events if event["data"]["repository"] == client.name]
            assert [event["type"].removeprefix("mirror.image.") for event in told] == [
                "pushed",
                "pushed",
                "pushed",
                "retagged",
            ]
            assert [event["data"].get("tags") for event in told] == [["v1"], ["stable"], ["v1"], None]

        receiver.answer(reply(400))
        assert clients[0].delete("stable")

        def dead() -> list[dict[str, str]]:
            return list(json.loads(cli("events", "--dead", "--json"))["events"])

        [event] = eventually(lambda: dead() or None, "the event is refused")
        assert (event["type"], event["error"], event["about"]) == ("mirror.tag.deleted", "status 400", "corp/app-1")
        receiver.answer(reply(204))
        assert "1 event will be sent again" in cli("events", "resend", event["id"])
        eventually(lambda: receiver.of("mirror.tag.deleted") or None, "it is sent again")

    cli("delete", f"corp/app-2@{sha256(clients[1].second)}")
    assert json.loads(cli("events", "--json"))["endpoints"][0]["waiting"] == 1
    with MirrorProcess(config):
        eventually(lambda: receiver.of("mirror.image.deleted") or None, "the deletion is reported")
    [deleted] = receiver.of("mirror.image.deleted")
    assert deleted["data"]["tags"] == ["v1"]
    assert deleted["data"]["by"].startswith("cli:")
