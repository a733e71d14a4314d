"""`mirror check --online` with a bucket: each thing that is needed is tried, and what is missing is named."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.command import Done, mirror
from tests.support.engines.access import BucketAccess
from tests.support.engines.rclone import Rclone
from tests.support.engines.s3_engine import BUCKET, S3Engine
from tests.support.engines.seaweedfs import SeaweedFS
from tests.support.mirror_process import write_config
from tests.support.process import ProgramProcess

#: Where the package lies.
TREE: Final = Path(__file__).resolve().parents[2]


def check(access: BucketAccess, folder: Path, *words: str) -> Done:
    """Of a sealed mirror, which contacts no registry."""
    config = folder / "mirror.toml"
    store = f'[store]\nroot = "{folder / "store"}"\nbucket = "{access.below(folder.name).url}"\n'
    config.write_text(f"offline = true\n{store}{access.table()}")
    return mirror("check", "--online", *words, "--config", config)


def steps(done: Done) -> dict[str, dict[str, Any]]:
    """What was tried."""
    return {each["step"]: each for each in done.json["bucket"]}


@pytest.mark.parametrize("name", ["seaweedfs", "radosgw", "azurite", "gcs"])
def test_everything_is_tried(request: pytest.FixtureRequest, tmp_path: Path, name: str) -> None:
    """With exit status 0; nothing stays."""
    access = request.getfixturevalue(name).access
    done = check(access, tmp_path, "--json")
    assert done.status == 0, done
    assert set(steps(done)) >= {
        "write",
        "read",
        "write on conditions",
        "upload in parts",
        "checksums",
        "list",
        "delete",
    }
    listed = check(access, tmp_path)
    assert listed.out.count("\nok     ") == len(steps(done))


@pytest.mark.parametrize(
    ("name", "write", "delete"),
    [
        ("seaweedfs", "s3:PutObject", "s3:DeleteObject"),
        ("radosgw", "s3:PutObject", "s3:DeleteObject"),
        ("azurite", "Storage Blob Data Contributor", "Storage Blob Data Contributor"),
        ("gcs", "storage.objects.create", "storage.objects.delete"),
    ],
)
def test_a_reader(request: pytest.FixtureRequest, tmp_path: Path, name: str, write: str, delete: str) -> None:
    """Exit status 1, with the missing permissions by their names; what needs no more than reading works."""
    done = check(request.getfixturevalue(name).read_only, tmp_path, "--json")
    assert done.status == 1
    found = steps(done)
    assert write in found["write"]["detail"]
    assert delete in found["delete"]["detail"]
    assert found["read"]["ok"]
    assert found["list"]["ok"]
    assert "not tried" in found["write on conditions"]["detail"]


def test_wrong_keys(seaweedfs: SeaweedFS, tmp_path: Path) -> None:
    """They are told from missing permissions by the store's own word, and no secret is printed."""
    done = check(seaweedfs.access.changed(secret_key="canary-77aa"), tmp_path)
    assert done.status == 1
    assert "SignatureDoesNotMatch" in done.out
    assert "canary" not in done.out + done.err


def test_a_store_that_ignores_conditions(rclone: Rclone, tmp_path: Path) -> None:
    """It is refused, with the reason."""
    done = check(rclone.access, tmp_path)
    assert done.status == 1
    assert "write on conditions: the object store lets an object be created twice" in done.out


def test_a_mirror_does_not_start_with_it(rclone: Rclone, tmp_path: Path) -> None:
    """Exit status 2, as for every mistake in the configuration, and a line in the log with the reason."""
    access = rclone.access.below(tmp_path.name)
    config = write_config(tmp_path, {}, store=f'bucket = "{access.url}"', more=access.table())
    with ProgramProcess([sys.executable, "-m", "mirror", "serve", "--config", config], cwd=TREE) as process:
        assert process.wait() == 2
    assert "created twice" in process.tail()
    assert '"event":"bucket refused"' in process.tail().replace(": ", ":")


@pytest.mark.parametrize("rule", [False, True])
def test_a_rule_for_unfinished_uploads(
    seaweedfs: SeaweedFS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: bool
) -> None:
    """Where they cannot be listed, a rule of the bucket has to abort them; if there is none, the check says so."""
    monkeypatch.setattr("mirror.store.cloud.raw_s3.RawS3.unfinished", lambda *_: None)
    change_rule(seaweedfs, rule)
    try:
        found = steps(check(seaweedfs.access, tmp_path, "--json"))["unfinished uploads"]
    finally:
        change_rule(seaweedfs, False)
    assert found["ok"]
    assert ("lifecycle rule" in found["advice"]) is not rule


def change_rule(engine: S3Engine, wanted: bool) -> None:
    """A rule that aborts unfinished uploads after a day, or none."""
    if not wanted:
        assert engine.call("DELETE", f"/{BUCKET}?lifecycle=").status == 204
        return
    aborting = (
        "<AbortIncompleteMultipartUpload><DaysAfterInitiation>1</DaysAfterInitiation></AbortIncompleteMultipartUpload>"
    )
    body = f"<Rule><ID>a</ID><Filter><Prefix></Prefix></Filter><Status>Enabled</Status>{aborting}</Rule>"
    answer = engine.call(
        "PUT", f"/{BUCKET}?lifecycle=", f"<LifecycleConfiguration>{body}</LifecycleConfiguration>".encode()
    )
    assert answer.status == 200, answer


def test_the_output_is_json(seaweedfs: SeaweedFS, tmp_path: Path) -> None:
    """With a key for the bucket, beside the one of the registries."""
    answer = json.loads(check(seaweedfs.access, tmp_path, "--json").out)
    assert answer["online"] == []
    assert all(set(each) == {"step", "ok", "detail", "advice"} for each in answer["bucket"])
