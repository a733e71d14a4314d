"""`mirror gc`, on the disk of a mirror that does not run."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from mirror.collection.sweep_report import SweepReport
from mirror.errors import BlobUnknown
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.hosted_records import BlobLink, LinkState
from mirror.ports import Leftovers
from mirror.store.hosted.blob_names import HostedNames
from mirror.store.local.json_records import JsonRecords
from mirror.store.local.local_records import local_repository_records
from mirror.store.local.locks import locked
from tests.support.command import CommandSite, Done
from tests.support.here import Here

_APP = Repo("corp", "team/app")
_CONFIG = """
offline = true
[store]
root = "{root}"
[hosting]
grace = "{grace}"
[access]
audit_log = "{root}/../audit.log"
[[hosted]]
name = "corp"
"""


class _Site(CommandSite):
    """A hosted registry with one blob that was uploaded, and that no manifest names."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, _CONFIG, grace="0s")
        Here.at(self.root)
        self.blobs, self.records = HostedNames(self.layout), local_repository_records(self.layout)
        self.digest = Digest.of(b"loose")
        self.blobs.put(self.digest, b"loose")
        self.records.put_link(_APP, BlobLink(self.digest, 5, LinkState.LINKED, time.time() - 3600))

    def configure(self, grace: str) -> None:
        self.config.write_text(_CONFIG.format(root=self.root, grace=grace))

    def gc(self, *words: str) -> Done:
        return self.run("gc", *words)


@pytest.fixture
def site(tmp_path: Path) -> _Site:
    """A store on the disk."""
    return _Site(tmp_path)


def test_it_tells_what_waits_and_collects(site: _Site) -> None:
    """Without a grace time, the third round deletes the bytes."""
    before = site.gc("--json").json
    assert before == {"last": None, "sweep": None, "waiting": [], "unread": []}
    [waiting] = site.gc("--run", "--json").json["waiting"]
    assert (waiting["kind"], waiting["repository"], waiting["why"]) == ("link", str(_APP), "no manifest names it")
    [waiting] = site.gc("--run", "--json").json["waiting"]
    assert (waiting["kind"], waiting["size"], waiting["why"]) == ("bytes", 5, "no repository has it")
    shown = site.gc()
    assert str(site.digest) in shown.out
    assert "1 link" in shown.out
    last = site.gc("--run", "--json").json["last"]
    assert (last["blobs"], last["bytes"], last["complete"]) == (1, 5, True)
    with pytest.raises(BlobUnknown):
        site.blobs.hosted(site.digest)
    audited = site.audit()
    assert [(line["action"], line["blobs"]) for line in audited] == [("collect", 0), ("collect", 0), ("collect", 1)]


def test_a_dry_run_is_the_default(site: _Site) -> None:
    """`--dry-run` lists the same as no option, changes nothing, and goes with neither a round nor a sweep."""
    site.gc("--run")
    assert site.gc("--dry-run", "--json").json == site.gc("--json").json
    for other in ("--run", "--sweep"):
        refused = site.gc("--dry-run", other)
        assert refused.status != 0
        assert "--dry-run excludes" in refused.err
    [waiting] = site.gc("--json").json["waiting"]
    assert (waiting["kind"], site.gc("--json").json["last"]["links"]) == ("link", 0)
    assert [line["action"] for line in site.audit()] == ["collect"]


def test_status_shows_the_last_round(site: _Site) -> None:
    """Also if no server runs."""
    assert site.run("status", "--json").json["collection"] is None
    site.gc("--run")
    site.gc("--run")
    assert site.run("status", "--json").json["collection"]["waiting_bytes"] == 5
    [line] = [line for line in site.run("status").out.splitlines() if "collected:" in line]
    assert "5 B wait" in line


def test_there_is_no_bucket_to_sweep(site: _Site) -> None:
    """The command says what is missing."""
    done = site.gc("--sweep")
    assert done.status != 0
    assert "`[store] bucket` is not set" in done.err


def test_the_last_sweep_is_shown(site: _Site) -> None:
    """How far it has come, and what it found."""
    report = SweepReport(time.time(), after="hosted/sha256/40/x", objects=1200, bytes=5000, deleted=1, deleted_bytes=7)
    report.lost = 2
    JsonRecords(site.layout, "collection").put("sweep", report.to_json())
    shown = site.gc().out
    assert "25 % done, has seen 1200 objects, 5 kB, and deleted 7 B" in shown
    assert "2 blobs were not found" in shown
    [line] = [line for line in site.run("status").out.splitlines() if "swept:" in line]
    assert line.endswith("1200 objects, 5 kB: 25 %, 2 blobs not found")
    assert site.gc("--json").json["sweep"]["done"] == 0.25
    report.end(time.time(), Leftovers(3, 0))
    JsonRecords(site.layout, "collection").put("sweep", report.to_json())
    assert site.run("status", "--json").json["sweep"]["uploads_aborted"] == 3


def test_the_grace_time_is_kept(site: _Site) -> None:
    """However often it runs."""
    site.configure("2h")
    for _ in range(3):
        assert site.gc("--run", "--json").json["waiting"] == []
    assert site.blobs.hosted(site.digest).size == 5


def test_one_round_at_a_time(site: _Site) -> None:
    """Whoever else collects is not disturbed."""
    with locked(site.layout, "collect"):
        done = site.gc("--run")
    assert done.status != 0
    assert "running already" in done.err


def test_it_names_what_is_damaged(site: _Site) -> None:
    """Each record, also where no round of collection had to open it."""
    layout = site.layout
    Path(layout.links(_APP)).joinpath(f"sha256-{site.digest.hex}").write_bytes(b"{")
    for folder in (layout.manifests(_APP), layout.tags(_APP), layout.deleted_tags(_APP)):
        Path(folder).mkdir()
    Path(layout.manifests(_APP)).joinpath(f"sha256-{site.digest.hex}").write_bytes(b"{")
    Path(layout.tags(_APP)).joinpath("1").write_bytes(b"{")
    Path(layout.deleted_tags(_APP)).joinpath("2").write_bytes(b"{")
    found = site.gc("--json").json
    assert {each["what"] for each in found["unread"]} == {
        f"the link of {_APP} to {site.digest}",
        f"{_APP}@{site.digest}",
        f"{_APP}:1",
        f"{_APP}:2, deleted",
    }
    assert f"cannot be read: {_APP}:1: the record of the tag {_APP}:1 is damaged" in site.gc().out
