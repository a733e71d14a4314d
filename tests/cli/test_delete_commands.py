"""`delete` and `undelete`, without a running mirror."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.records import TagRecord
from tests.support.command import CommandSite
from tests.support.here import Here
from tests.support.hosted_here import CORP, HostedHere

_CONFIG = """
[store]
root = "{root}"
[access]
audit_log = "{root}/../audit.log"
[[hosted]]
name = "corp"
{more}
[[upstream]]
name = "docker.io"
url = "http://127.0.0.1:9"
"""
_OTHER = Repo("corp", "other")


class _Site(CommandSite):
    def __init__(self, folder: Path, more: str = "") -> None:
        super().__init__(folder, _CONFIG, more=more)
        self.here = HostedHere(self.root)
        self.cache = Here.at(self.root)

    def json(self, *words: str) -> Any:
        done = self.run(*words, "--json")
        assert done.status == 0, done
        return done.json

    def images(self) -> list[str]:
        done = self.run("ls", "corp/**", "--json")
        return [json.loads(line)["image"] for line in done.out.splitlines()]


@pytest.fixture
def site(tmp_path: Path) -> _Site:
    """A mirror that hosts `corp`, and does not run."""
    return _Site(tmp_path)


def test_a_deleted_tag_comes_back(site: _Site) -> None:
    """Its image stays meanwhile; who deleted it, and until when it can be undeleted, is listed and audited."""
    root = site.here.image([b"layer"], tag="v1")
    done = site.run("delete", "corp/team/app:v1")
    assert done.status == 0, done
    assert "the image stays; delete it by its digest" in done.out
    assert "`mirror undelete corp/team/app:v1` brings it back, until " in done.out
    assert site.images() == [f"corp/team/app@{root.digest}"]
    [entry] = site.json("undelete")["deleted"]
    assert (entry["image"], entry["tags"], entry["digest"]) == ("corp/team/app:v1", ["v1"], str(root.digest))
    assert entry["by"].startswith("cli:")
    assert entry["deleted"] < entry["until"]
    assert site.json("undelete", "corp/team/app:v1") == {"image": "corp/team/app:v1", "manifests": [], "left": []}
    assert site.images() == ["corp/team/app:v1"]
    assert site.json("undelete")["deleted"] == []
    assert [(line["action"], line["status"], line["reference"]) for line in site.audit()] == [
        ("delete", 200, "v1"),
        ("undelete", 200, "v1"),
    ]


def test_a_tag_whose_record_is_damaged_is_deleted(site: _Site) -> None:
    """Nobody can say what it points to, so it cannot be pushed over; deleting it makes room for a push."""
    root = site.here.image([b"layer"], tag="v1")
    [record] = (site.root / "repositories").rglob("_tags/v1")
    record.write_text("{")
    done = site.run("delete", "corp/team/app:v1")
    assert done.status == 0, done
    assert "brings it back" not in done.out
    assert not record.exists()
    assert site.images() == [f"corp/team/app@{root.digest}"]


def test_an_image_goes_and_comes_back_with_its_platforms(site: _Site) -> None:
    """Those that another index or a tag needs stay; by one of its tags it comes back as well."""
    own, shared, tagged = (site.here.image([name]) for name in (b"own", b"shared", b"tagged"))
    site.here.image([b"tagged"], tag="arm")
    root = site.here.index({"linux/amd64": own, "linux/arm64": shared, "linux/s390x": tagged}, tag="v1")
    site.here.index({"linux/arm64": shared}, tag="other")
    deleted = site.json("delete", f"corp/team/app@{root.digest}")
    assert deleted["tags"] == ["v1"]
    assert deleted["manifests"] == [str(root.digest), str(own.digest)]
    assert deleted["size"] > root.size
    assert site.images() == ["corp/team/app:arm", "corp/team/app:other"]
    back = site.json("undelete", "corp/team/app:v1")
    assert back["manifests"] == [str(own.digest), str(root.digest)]
    assert sorted(site.images()) == ["corp/team/app:arm", "corp/team/app:other", "corp/team/app:v1"]
    assert "complete" in site.run("history", "corp/team/app:v1").out


def test_a_tag_that_moved_on_does_not_come_back(site: _Site) -> None:
    """The image does, and the command says which of its tags do not, and why."""
    root = site.here.image([b"layer"], tag="v1")
    site.json("delete", f"corp/team/app@{root.digest}")
    site.here.image([b"other"], tag="v1")
    done = site.run("undelete", f"corp/team/app@{root.digest}")
    assert done.status == 0
    assert "not undeleted: the tag corp/team/app:v1 exists, and points to another image now" in done.out


def test_a_repository_goes_and_comes_back(site: _Site) -> None:
    """All of it, and nothing of another one."""
    site.here.image([b"1"], tag="v1")
    site.here.image([b"2"], tag="v2")
    site.here.repo = _OTHER
    site.here.image([b"3"], tag="v3")
    assert site.json("delete", "corp/team/app", "--repository", "--dry-run")["tags"] == ["v1", "v2"]
    assert len(site.images()) == 3
    assert site.json("delete", "corp/team/app", "--repository")["tags"] == ["v1", "v2"]
    assert site.images() == ["corp/other:v3"]
    assert len(site.json("undelete", "corp/team/app", "--repository")["manifests"]) == 2
    assert site.images() == ["corp/other:v3", "corp/team/app:v1", "corp/team/app:v2"]
    assert "has nothing that was deleted" in site.run("undelete", "corp/team/app", "--repository").err


def test_a_leaked_secret_is_gone_at_once(site: _Site) -> None:
    """With every tag of the image and without a way back; what others have stays, and they are named."""
    site.here.repo = _OTHER
    site.here.image([b"base"], tag="v1")
    site.here.repo = CORP
    kept = site.here.image([b"base", b"kept"], tag="good")
    root = site.here.image([b"base", b"kept", b"secret"], tag="v1")
    site.here.catalog.put_tag(CORP, TagRecord("latest", root.digest, root.media_type, root.size, 2000.0))
    site.cache.blob(b"secret")
    plan = site.json("delete", "corp/team/app:v1", "--now", "--dry-run")
    assert (plan["tags"], plan["until"], plan["blobs"]) == (["latest", "v1"], None, 0)
    assert site.here.is_here(b"secret")
    deleted = site.json("delete", "corp/team/app:v1", "--now")
    assert deleted["blobs"] == 2  # the secret and the manifest
    assert deleted["elsewhere"] == [
        {"repository": "corp/other", "blobs": 2},
        {"repository": "corp/team/app", "blobs": 3},
    ]
    assert not site.here.is_here(b"secret")
    assert not Path(site.layout.blob(Digest.of(b"secret"))).exists()
    assert site.here.is_here(b"kept")
    assert site.images() == ["corp/other:v1", "corp/team/app:good"]
    assert site.run("undelete", f"corp/team/app@{root.digest}").status == 1
    assert site.json("undelete")["deleted"] == []
    assert site.json("show", f"corp/team/app@{kept.digest}")["complete"]


def test_a_secret_that_is_cached_or_kept_is_told(site: _Site) -> None:
    """A cached image with the same layer keeps it in the cache; a deleted image that is kept can be erased as well."""
    root = site.here.image([b"secret"], tag="v1")
    site.cache.image([b"secret"], tag="cached")
    site.json("delete", f"corp/team/app@{root.digest}")
    assert site.images() == []
    deleted = site.json("delete", f"corp/team/app@{root.digest}", "--now")
    assert deleted["elsewhere"] == [{"repository": "docker.io/library/app", "blobs": 3}]
    assert not site.here.is_here(b"secret")
    assert Path(site.layout.blob(Digest.of(b"secret"))).exists()
    assert site.json("undelete")["deleted"] == []
    again = site.run("delete", f"corp/team/app@{root.digest}", "--now")
    assert (again.status, "is not here" in again.err) == (1, True)


def test_nothing_is_kept_if_the_registry_keeps_nothing(tmp_path: Path) -> None:
    """Then no message promises that it can be undeleted."""
    site = _Site(tmp_path, "keep_deleted = 0")
    root = site.here.image([b"layer"], tag="v1")
    done = site.run("delete", f"corp/team/app@{root.digest}")
    assert (done.status, "undelete" in done.out) == (0, False)
    assert site.json("undelete")["deleted"] == []


def test_a_frozen_tag_is_not_deleted(site: _Site) -> None:
    """Neither alone nor with its image, until it is unfrozen."""
    root = site.here.image([b"layer"], tag="v1")
    assert site.run("freeze", "corp/team/app:v1").status == 0
    for words in (["corp/team/app:v1"], [f"corp/team/app@{root.digest}"], ["corp/team/app:v1", "--now"]):
        done = site.run("delete", *words)
        assert done.status == 1
        assert "frozen" in done.err
    assert site.images() == ["corp/team/app:v1"]


def test_an_immutable_tag_is_deleted_by_force_alone(tmp_path: Path) -> None:
    """Neither alone, nor with its image or its repository; the audit log says that it was forced."""
    site = _Site(tmp_path, '[[hosted.immutable]]\ntags = ["v*"]\nexcept = ["v0"]')
    root = site.here.image([b"layer"], tag="v1")
    for tag in ("v0", "latest"):
        site.here.catalog.put_tag(CORP, TagRecord(tag, root.digest, root.media_type, root.size, 2000.0))
    image = f"corp/team/app@{root.digest}"
    ways = (["corp/team/app:v1"], [image], ["corp/team/app:v1", "--now"], ["corp/team/app", "--repository"])
    for words in ways:
        for more in ([], ["--dry-run"]):
            done = site.run("delete", *words, *more)
            assert (done.status, "immutable" in done.err, "--force" in done.err) == (1, True, True), done
    assert site.json("delete", "corp/team/app:v0")["tags"] == ["v0"]
    assert site.json("delete", image, "--force", "--dry-run")["tags"] == ["latest", "v1"]
    assert sorted(site.images()) == ["corp/team/app:latest", "corp/team/app:v1"]
    assert site.json("delete", "corp/team/app", "--repository", "--force")["tags"] == ["latest", "v1"]
    assert site.images() == []
    *refused, _, forced = site.audit()
    assert [(line["status"], "forced" in line) for line in refused] == [(403, False)] * len(ways)
    assert (forced["status"], forced["forced"], forced["manifests"]) == (200, True, 1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["corp/team/app"], "name a tag or a digest"),
        (["corp/team/app:v1", "--repository"], "named without tag and digest"),
        (["app:v1"], "is not hosted here, but cached: use `mirror purge`"),
        (["elsewhere.example/app:v1"], "is not configured"),
        (["corp/team/app:none"], "corp/team/app:none is not here"),
        (["corp/nothing", "--repository"], "corp/nothing has nothing here"),
    ],
)
def test_what_is_refused(site: _Site, words: list[str], said: str) -> None:
    """With what to write instead; nothing is deleted by a name that is only half said."""
    site.here.image([b"layer"], tag="v1")
    site.here.image([b"latest"], tag="latest")
    done = site.run("delete", *words)
    assert done.status in (1, 2)
    assert said in done.err
    assert len(site.images()) == 2


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("answer", "words", "gone"), [("n", [], False), ("y", [], True), ("", ["--yes"], True)])
def test_a_terminal_is_asked_first(
    site: _Site, monkeypatch: pytest.MonkeyPatch, answer: str, words: list[str], gone: bool
) -> None:
    """Before a whole repository goes; it is shown what would go."""
    site.here.image([b"layer"], tag="v1")
    monkeypatch.setattr("sys.stdin", _Terminal(f"{answer}\n"))
    done = site.run("delete", "corp/team/app", "--repository", *words)
    assert done.status == (0 if gone else 1)
    assert ("would be deleted" in done.out) == (not words)
    assert site.images() == ([] if gone else ["corp/team/app:v1"])
