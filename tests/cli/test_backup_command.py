"""`mirror backup`, as operators run it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.hosted_records import BlobLink, LinkState
from mirror.store.hosted.backup_folder import last_backup
from mirror.store.hosted.blob_names import HostedNames
from mirror.store.local.blobs import LocalStore
from mirror.store.local.layout import Layout
from mirror.store.local.local_records import local_repository_records
from tests.support.command import mirror

CONTENT = b"a layer"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Of a mirror that hosts one blob."""
    layout = LocalStore(Layout(tmp_path / "store")).layout
    digest = Digest.of(CONTENT)
    HostedNames(layout).put(digest, CONTENT)
    local_repository_records(layout).put_link(
        Repo("corp", "app"), BlobLink(digest, len(CONTENT), LinkState.LINKED, 1.0)
    )
    file = tmp_path / "mirror.toml"
    file.write_text(f'[store]\nroot = "{tmp_path}/store"\n[[hosted]]\nname = "corp"\n')
    return file


def test_a_backup_says_what_it_did(config: Path, tmp_path: Path) -> None:
    """In words and in JSON, for the first and for the next one; no ledger or index is made for it. When it began is
    noted in the store, for its owner.
    """
    folder, layout = str(tmp_path / "backup"), Layout(tmp_path / "store")
    os.chown(layout.marker, 12345, 54321)
    assert last_backup(layout) is None
    began = time.time()
    first = mirror("backup", folder, "--config", str(config))
    assert (first.status, first.out) == (
        0,
        f"{folder}: 1 repository; copied 1 blob (7 B), 0 were there, 0 removed\n",
    )
    noted = last_backup(layout)
    assert noted
    assert began - 1 < noted <= time.time()
    assert (layout.backed_up.stat().st_uid, layout.backed_up.stat().st_gid) == (12345, 54321)
    again = mirror("backup", folder, "--config", str(config), "--json")
    assert again.json == {
        "repositories": 1,
        "records": 1,
        "copied": 0,
        "copied_bytes": 0,
        "present": 1,
        "removed": 0,
        "problems": [],
    }
    assert not list((tmp_path / "store").glob("*.sqlite"))


def test_a_backup_with_a_problem_fails(config: Path, tmp_path: Path) -> None:
    """What is missing is named on standard error; what is wrong with the arguments has exit status 2."""
    digest = Digest.of(CONTENT)
    Path(Layout(tmp_path / "store").hosted_blob(digest)).unlink()
    done = mirror("backup", str(tmp_path / "backup"), "--config", str(config))
    assert (done.status, done.err) == (1, f"corp/app has no bytes of {digest}\n")
    assert last_backup(Layout(tmp_path / "store")) is None
    inside = mirror("backup", str(tmp_path / "store"), "--config", str(config))
    assert (inside.status, "contain one another" in inside.err) == (2, True)
    config.write_text(f'[store]\nroot = "{tmp_path}/store"\n')
    nothing = mirror("backup", str(tmp_path / "backup"), "--config", str(config))
    assert (nothing.status, "no registry is hosted here" in nothing.err) == (2, True)


def test_what_is_in_a_bucket_is_not_backed_up_from_the_disk(config: Path, tmp_path: Path) -> None:
    """The disk has copies of some of it: a backup of that would look complete."""
    text = config.read_text().replace("[[hosted]]", 'bucket = "s3://images/site"\n[[hosted]]')
    config.write_text(text + '[bucket]\nendpoint = "http://127.0.0.1:9"\nallow_http = true\n')
    refused = mirror("backup", str(tmp_path / "backup"), "--config", str(config))
    assert refused.status == 2
    assert "in a bucket" in refused.err
    assert not (tmp_path / "backup").exists()
