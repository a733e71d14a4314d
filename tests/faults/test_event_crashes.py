"""`kill -9` and power cuts while clients push and delete, with an endpoint that wants to know of each change: what was
acknowledged is reported, and what is not there is not.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from mirror.errors import StoreError
from mirror.index.outbox import SqliteOutbox
from tests.faults.conftest import Tally
from tests.support.breaking_steps import Steps
from tests.support.event_receiver import EventReceiver
from tests.support.ext4 import Ext4, refusal
from tests.support.forked_workers import ForkedWorkers
from tests.support.images import sha256
from tests.support.mirror_process import write_config
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
#: More steps than any of the changes takes.
_MANY: Final = 300


@dataclass(frozen=True, slots=True)
class _Change:
    """One change of a repository, after `push_both`. `is_there` looks whether it was made; `reports` whether an event
    says so.
    """

    make: Callable[[StepClient], bool]
    is_there: Callable[[StepClient], bool]
    reports: Callable[[StepClient, dict[str, Any]], bool]


def _moved(client: StepClient, event: dict[str, Any]) -> bool:
    return bool(event["type"] == "mirror.image.pushed" and event["data"]["digest"] == sha256(client.second))


_CHANGES: Final = {
    "manifest PUT": _Change(
        lambda client: client.put_manifest("v1", client.second),
        lambda client: client.digest_of("v1") == sha256(client.second),
        lambda client, event: _moved(client, event) and event["data"]["tags"] == ["v1"],
    ),
    "DELETE of a tag": _Change(
        lambda client: client.delete("v1"),
        lambda client: client.digest_of("v1") is None,
        lambda _client, event: event["type"] == "mirror.tag.deleted",
    ),
    "DELETE of a manifest": _Change(
        lambda client: client.delete(sha256(client.first)),
        lambda client: client.digest_of(sha256(client.first)) is None,
        lambda _client, event: event["type"] == "mirror.image.deleted",
    ),
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


def _judge(change: _Change, client: StepClient, acknowledged: bool, receiver: EventReceiver) -> bool:
    """Whether the change is there; the events say the same."""
    there = change.is_there(client)
    assert there or not acknowledged
    about = [event for event in receiver.events if event["data"].get("repository") == client.name]
    reported = [event for event in about if change.reports(client, event)]
    assert bool(reported) == there, (there, acknowledged, json.dumps(about, indent=1))
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
    return there


@pytest.mark.parametrize("name", _CHANGES)
def test_113_killed_before_each_step(tmp_path: Path, receiver: EventReceiver, tally: Tally, name: str) -> None:
    """Row 113: the worker is killed before each step of one change, the transactions of the outbox
    included. The next one reports the change if it is there, and only then.
    """
    change, steps = _CHANGES[name], Steps(tmp_path / "steps")
    there = []
    config = write_config(tmp_path, {}, workers=1, more=_settings(receiver))
    with ForkedWorkers(config, steps=steps) as workers:
        for number in range(1, _MANY):
            client = StepClient(workers.port, number)
            workers.start()
            client.push_both()
            _wait_for_all(tmp_path / "store")
            steps.kill_before(number)
            acknowledged = change.make(client)
            hit = steps.hit
            assert hit or acknowledged
            workers.kill()
            workers.start()
            _wait_for_all(tmp_path / "store")
            there.append(_judge(change, client, acknowledged, receiver))
            workers.kill()
            if not hit:
                break
        log = workers.log.read_text()
    tally(steps=len(there) - 1)
    assert there[0] is False
    assert there[-1] is True
    assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:4000]


@pytest.mark.skipif(refusal() is not None, reason=f"power cannot be cut here: {refusal()}")
@pytest.mark.parametrize("name", _CHANGES)
def test_113_power_cut_before_each_step(tmp_path: Path, receiver: EventReceiver, tally: Tally, name: str) -> None:
    """Row 113: the power is cut before each step of one change, and at last right after its answer."""
    change, steps = _CHANGES[name], Steps(tmp_path / "steps")
    there = []
    with Ext4(tmp_path) as disk:
        config = tmp_path / "mirror.toml"
        more = _settings(receiver)
        config.write_text(write_config(disk.mount_point, {}, workers=1, more=more).read_text())
        root = disk.mount_point / "store"
        with ForkedWorkers(config, steps=steps) as workers:
            for number in range(1, _MANY):
                client = StepClient(workers.port, number)
                workers.start(boot=2 * number)
                client.push_both()
                _wait_for_all(root)
                steps.cut_before(number)
                acknowledged = change.make(client)
                hit = steps.hit
                if not hit:
                    disk.cut()
                workers.kill()
                disk.remount()
                workers.start(boot=2 * number + 1)
                _wait_for_all(root)
                there.append(_judge(change, client, acknowledged, receiver))
                workers.kill()
                if not hit:
                    break
    tally(steps=len(there) - 1)
    assert there[0] is False
    assert there[-1] is True
