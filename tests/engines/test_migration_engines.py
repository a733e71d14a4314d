"""A migration into each real store, back to the same disk, and to another one."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.engines.access import BucketAccess
from tests.support.engines.azurite import Azurite
from tests.support.engines.gcs_front import GcsFront
from tests.support.engines.radosgw import RadosGateway
from tests.support.hosted_here import HostedHere
from tests.support.process import run


@pytest.fixture(params=["radosgw", "azurite", "gcs"])
def access(request: pytest.FixtureRequest, tmp_path: Path) -> BucketAccess:
    """A prefix of each store."""
    engine: RadosGateway | Azurite | GcsFront = request.getfixturevalue(request.param)
    return engine.access.below(f"migrated-{request.param}-{os.urandom(4).hex()}")


def files(root: Path) -> dict[str, bytes]:
    """What is hosted, with its records."""
    found = [*root.glob("hosted/*/*/*"), *(path for path in root.glob("repositories/**/*") if path.is_file())]
    return {str(path.relative_to(root)): path.read_bytes() for path in found if path.name != "_changes"}


def test_there_and_back(access: BucketAccess, tmp_path: Path) -> None:
    """A blob of several parts, tags that differ in a dot; and once more finds nothing to do."""
    root, config = tmp_path / "store", tmp_path / "mirror.toml"
    here = HostedHere(root)
    for tag, size in (("v1", 9 << 20), ("v1.", 1000), ("v2", 1), ("V2", 100)):
        here.image([os.urandom(size)], tag=tag)
    before = files(root)
    config.write_text(f'[store]\nroot = "{root}"\nbucket = "{access.url}"\n[[hosted]]\nname = "corp"\n{access.table()}')

    def migrate(*words: str | Path) -> Any:
        command = [sys.executable, "-m", "mirror", "migrate", *words, "--json", "--config", config]
        return json.loads(run(command))

    first = migrate("--to-bucket")
    assert (first["records_written"], first["blobs_copied"]) == (13, 9)
    assert migrate("--to-bucket", "--final")["finished"]
    copied = migrate("--to-disk", "--root", tmp_path / "copy")
    assert (copied["records_written"], copied["blobs_copied"]) == (13, 9)
    assert files(tmp_path / "copy") == before
    again = migrate("--to-disk", "--root", tmp_path / "copy")
    assert (again["records_written"], again["blobs_copied"]) == (0, 0)
    assert migrate("--to-disk", "--final")["finished"]
    assert files(root) == before
