"""`copy` and `replicate`, without a running mirror."""

from __future__ import annotations

from pathlib import Path

import pytest

from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.store.local.local_records import local_catalog
from tests.support.command import CommandSite
from tests.support.hosted_here import HostedHere
from tests.support.push_target import PushTarget, answers

_CONFIG = """
default_registry = ""
[store]
root = "{root}"
[access]
audit_log = "{root}/../audit.log"
[[hosted]]
name = "corp"
[[hosted.immutable]]
repositories = ["prod/**"]
tags = ["v*"]
[[upstream]]
name = "b.example.com"
url = "{url}"
push = true
[[replication]]
name = "to-b"
from = "corp/team/**"
to = "b.example.com"
"""


class _Site(CommandSite):
    def __init__(self, folder: Path, url: str) -> None:
        super().__init__(folder, _CONFIG, url=url)
        self.here = HostedHere(self.root)
        self.catalog = local_catalog(self.layout)

    def tags(self, repo: Repo) -> list[str]:
        return sorted(self.catalog.tags(repo))


@pytest.fixture
def site(tmp_path: Path, target: PushTarget) -> _Site:
    """With an image of two tags."""
    site = _Site(tmp_path, target.url)
    site.here.image([b"layer"], tag="v1")
    site.here.image([b"layer", b"more"], tag="v2")
    return site


def test_copies_within_the_site(site: _Site) -> None:
    """One tag, all tags, what an immutable tag refuses; each is a line in the audit log, dry runs are not."""
    prod = Repo("corp", "prod/app")
    done = site.run("copy", "corp/team/app:v1", "corp/prod/app", "--dry-run")
    assert (done.status, site.tags(prod)) == (0, [])
    assert "would be copied" in done.out
    done = site.run("copy", "corp/team/app:v1", "corp/prod/app")
    assert done.status == 0, done
    assert site.tags(prod) == ["v1"]
    assert "corp/team/app:v1 -> corp/prod/app:v1: copied" in done.out
    done = site.run("copy", "corp/team/app:v2", "corp/prod/app:v1")
    assert done.status == 1
    assert "immutable" in done.err
    done = site.run("copy", "corp/team/app", "corp/prod/app", "--all-tags", "--json")
    assert (done.json["copied"], done.json["same"]) == (1, 1)
    digest = done.json["images"][0]["digest"]
    assert site.run("copy", f"corp/team/app@{digest}", "corp/prod/other").status == 0
    assert site.catalog.get_manifest(Repo("corp", "prod/other"), Digest.parse(digest)) is not None
    lines = [(line["action"], line["source"], line["repository"], line["status"]) for line in site.audit()]
    assert lines == [
        ("copy", "corp/team/app:v1", "corp/prod/app", 200),
        ("copy", "corp/team/app:v2", "corp/prod/app", 200),
        ("copy", "corp/team/app", "corp/prod/app", 200),
        ("copy", f"corp/team/app@{digest}", "corp/prod/other", 200),
    ]
    assert "immutable" in site.audit()[1]["reason"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["corp/team/app", "corp/prod/app"], "name a tag or a digest"),
        (["corp/team/app:v1", "nowhere.example/app"], "not configured"),
        (["corp/team/app:v1", "corp/prod/app", "--platform", "linux"], "not a platform"),
    ],
)
def test_mistakes(site: _Site, words: list[str], reason: str) -> None:
    """Exit status 2, and what is wrong."""
    done = site.run("copy", *words)
    assert done.status == 2, done
    assert reason in done.err


def test_copies_to_another_registry(site: _Site, target: PushTarget) -> None:
    """With how much was sent; a failure says why."""
    done = site.run("copy", "corp/team/app:v1", "b.example.com/team/app")
    assert done.status == 0, done
    assert "sent" in done.out
    assert list(target.repository("team/app").tags) == ["v1"]
    target.fail("manifest", answers(403, "DENIED"), 9)
    done = site.run("copy", "corp/team/app:v2", "b.example.com/team/app")
    assert done.status == 1
    assert "denied" in done.err


def test_rules(site: _Site, target: PushTarget) -> None:
    """They are listed; one is run, dry first; a conflict and a failure are shown."""
    assert "never ran" in site.run("replicate").out
    assert site.run("replicate", "another").status == 2
    assert site.run("replicate", "--dry-run").status == 2
    done = site.run("replicate", "to-b", "--dry-run")
    assert (done.status, len(target.repository("team/app").tags)) == (0, 0)
    assert "put: corp/team/app:v1" in done.out
    done = site.run("replicate", "to-b", "--json")
    assert (done.json["ok"], done.json["put"]) == (True, 2)
    del target.repository("team/app").tags["v1"]
    target.repository("team/app").tags["v2"] = next(iter(target.repository("team/app").manifests))
    done = site.run("replicate", "to-b")
    assert "deleted there: corp/team/app:v1" in done.out
    assert site.run("replicate", "to-b", "--again").status == 0
    assert "v1" in target.repository("team/app").tags
    target.fail("look", answers(403, "DENIED"), 99)
    done = site.run("replicate", "to-b")
    assert done.status == 1
    assert "failed: corp/team/app: " in done.err
    [listed] = site.run("replicate", "--json").json
    assert (listed["name"], listed["state"], listed["consecutive_failures"]) == ("to-b", "failed", 1)
    actions = {line["action"] for line in site.audit()}
    assert actions == {"replicate"}
