"""`mirror events`, on the disk of a mirror that does not run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from mirror.app.storage import open_outbox
from mirror.config import load
from mirror.index.outbox import SqliteOutbox
from mirror.ports import Outgoing
from tests.support.command import CommandSite, Done
from tests.support.here import Here

_CONFIG = """
offline = true
[store]
root = "{root}"
[access]
audit_log = "{root}/../audit.log"
[[hosted]]
name = "corp"
[[events.endpoint]]
name = "ci"
url = "https://ci.example.test/hook?token=hidden"
"""


class _Site(CommandSite):
    """A store with one event that waits, one that is dead, and one for an endpoint that is gone."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, _CONFIG)
        Here.at(self.root)
        self.outbox: SqliteOutbox = open_outbox(load(self.config), self.layout)
        for id, endpoint in (("waiting", "ci"), ("dead", "ci"), ("foreign", "gone")):
            with self.outbox.turn("corp/app") as order:
                event = Outgoing(id, "mirror.image.pushed", "corp/app", "{}", 1_700_000_000.0, (endpoint,))
            self.outbox.confirm(None, order, [event])
        [dead] = [each for each in self.outbox.listed(endpoint="ci", dead=None, most=9) if each.id == "dead"]
        self.outbox.bury(dead, "status 400")

    def ask(self, *words: str) -> Done:
        return self.run("events", *words)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[_Site]:
    """On the disk, as a mirror has left it, or still uses it."""
    site = _Site(tmp_path)
    with closing(site.outbox):
        yield site


def test_it_lists_what_waits(site: _Site) -> None:
    """By endpoint, and each event with its last error; no URL."""
    done = site.ask()
    assert done.status == 0
    assert "waiting" in done.out
    assert "dead: status 400" in done.out
    assert "not configured" in done.out
    assert "hidden" not in done.out
    listed = site.ask("--json").json
    assert [(each["endpoint"], each["waiting"], each["dead"], each["configured"]) for each in listed["endpoints"]] == [
        ("ci", 1, 1, True),
        ("gone", 1, 0, False),
    ]
    assert [event["id"] for event in listed["events"]] == ["waiting", "dead", "foreign"]
    assert listed["events"][1]["made"] == "2023-11-14T22:13:20Z"
    assert [event["id"] for event in site.ask("--dead", "--json").json["events"]] == ["dead"]
    assert [event["id"] for event in site.ask("--endpoint", "gone", "--json").json["events"]] == ["foreign"]


def test_it_sends_dead_events_again(site: _Site) -> None:
    """One, or all; the audit log says so. Exit status 1 if there is none."""
    assert site.ask("resend", "waiting").status == 1
    done = site.ask("resend", "dead")
    assert (done.status, done.out) == (0, "1 event will be sent again\n")
    assert site.ask("resend").status == 1
    assert site.ask("resend", "--json").json == {"resent": 0}
    assert [each.dead for each in site.outbox.listed(endpoint="ci", dead=None, most=9)] == [False, False]
    assert [(line["action"], line["events"]) for line in site.audit()][:2] == [("events", 0), ("events", 1)]


def test_mistakes(site: _Site) -> None:
    """Each says what to write instead."""
    assert "is no endpoint that is configured here; they are ci" in site.ask("resend", "--endpoint", "gone").err
    assert "mirror events resend ID" in site.ask("list", "dead").err
    site.config.write_text(_CONFIG.partition("[[events")[0].format(root=site.root))
    done = site.ask()
    assert (done.status, "no [[events.endpoint]]" in done.err) == (2, True)
