"""A bucket of an engine, opened as the mirror opens it, from settings."""

from __future__ import annotations

import json
from pathlib import Path

from mirror.app.bucket import open_bucket
from mirror.config import load
from mirror.ports import Bucket
from tests.support.engines.access import BucketAccess


def opened_bucket(folder: Path, access: BucketAccess, **settings: object) -> Bucket:
    """`settings` beside those of `access`. The configuration is written to `folder`."""
    table = {**access.settings, **settings}
    file = folder / "bucket.toml"
    file.write_text(
        f'[store]\nroot = "{folder}/store"\nbucket = "{access.url}"\n[bucket]\n'
        + "".join(f"{name} = {json.dumps(value)}\n" for name, value in table.items())
    )
    bucket = open_bucket(load(file))
    assert bucket is not None
    return bucket
