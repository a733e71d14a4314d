"""`kill -9` and power cuts while clients push and delete, with an endpoint that wants to know of each change: what was
acknowledged is reported, and what is not there is not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pytest

from mirror.errors import StoreError
from mirror.index.outbox import SqliteOutbox
from tests.faults.conftest import Tally
from tests.support.each_step import CHANGES, Judge, cut_before_each_step, kill_before_each_step
from tests.support.event_receiver import EventReceiver
from tests.support.ext4 import refusal
from tests.support.images import sha256
from tests.support.process import eventually
from tests.support.step_client import StepClient

_SETTINGS: Final = """
    [[hosted]]
    name = "corp"
    [hosting]
    collect_every = "1h"
    max_uploads = 100000
    max_uploads_per_caller = 100000
    [[access.rule]]
    effect = "allow"
    callers = ["*"]
    actions = ["pull", "push", "overwrite", "delete"]
    [[events.endpoint]]
    name = "ci"
    url = "{url}"
    secret_file = "{secret}"
"""


def _moved(client: StepClient, event: dict[str, Any]) -> bool:
    return bool(event["type"] == "mirror.image.pushed" and event["data"]["digest"] == sha256(client.second))


#: Whether an event says that a change was made.
_REPORTS: Final[Mapping[str, Callable[[StepClient, dict[str, Any]], bool]]] = {
    "manifest PUT": lambda client, event: _moved(client, event) and event["data"]["tags"] == ["v1"],
    "DELETE of a tag": lambda _client, event: event["type"] == "mirror.tag.deleted",
    "DELETE of a manifest": lambda _client, event: event["type"] == "mirror.image.deleted",
}


def _settings(receiver: EventReceiver) -> str:
    return _SETTINGS.format(url=receiver.url, secret=receiver.secret_file)


def _wait_for_all(root: Path) -> None:
    """Until nothing waits, and no change is unsettled."""

    def is_empty() -> bool:
        try:
            with closing(SqliteOutbox(root / "events", ["ci"], most_events=1000, most_bytes=1 << 20)) as outbox:
                return not outbox.orphans() and all(not each.waiting for each in outbox.backlog(["ci"]))
        except StoreError:
            return False  # a worker writes

    eventually(is_empty, "every event is delivered")


def _reported(name: str, receiver: EventReceiver) -> Judge:
    """The events say that the change was made if it is there, and only then."""

    def judge(client: StepClient, there: bool) -> None:
        about = [event for event in receiver.events if event["data"].get("repository") == client.name]
        reported = [event for event in about if _REPORTS[name](client, event)]
        assert bool(reported) == there, (there, json.dumps(about, indent=1))
        assert len({event["id"] for event in reported}) == there
        # what is reported of a part of a push is there as well
        for event in about:
            if _moved(client, event) and not there:
                assert event["data"]["tags"] == []
                assert client.digest_of(sha256(client.second)) == sha256(client.second)
        assert all(event["data"].get("certain", True) for event in about)
        order = list({event["id"]: event["sequence"] for event in about}.values())
        assert order == sorted(set(order))
        assert not receiver.problems

    return judge


@pytest.mark.parametrize("name", _REPORTS)
def test_141_killed_before_each_step(tmp_path: Path, receiver: EventReceiver, tally: Tally, name: str) -> None:
    """Row 141: the worker is killed before each step of one change, the transactions of the outbox
    included. The next one reports the change if it is there, and only then.
    """
    settings, judge = _settings(receiver), _reported(name, receiver)
    tally(steps=kill_before_each_step(tmp_path, settings, CHANGES[name], judge, settle=_wait_for_all))


@pytest.mark.skipif(refusal() is not None, reason=f"power cannot be cut here: {refusal()}")
@pytest.mark.parametrize("name", _REPORTS)
def test_141_power_cut_before_each_step(tmp_path: Path, receiver: EventReceiver, tally: Tally, name: str) -> None:
    """Row 141: the power is cut before each step of one change, and at last right after its answer."""
    settings, judge = _settings(receiver), _reported(name, receiver)
    tally(steps=cut_before_each_step(tmp_path, settings, CHANGES[name], judge, settle=_wait_for_all))
