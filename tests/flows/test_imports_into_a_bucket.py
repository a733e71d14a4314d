"""What an import brings into a hosted registry whose content is in a bucket."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from mirror.app.hosting import open_hosted_imports
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_MANIFEST, read_manifest
from mirror.oci.reference import Repo
from mirror.store.local.layout import CopiesLayout, Layout
from tests.support.bucket_mirror import bucket_mirror, bucket_opened, wipe
from tests.support.command import mirror as command
from tests.support.hosted_here import HostedHere
from tests.support.memory_bucket import MemoryBucket
from tests.support.push_client import PushClient, image

LAYER = b"an imported layer"


async def test_an_image_that_the_disk_has_is_imported(tmp_path: Path) -> None:
    """Its bytes are in the bucket before the tag is: a machine with a new disk serves it."""
    bucket, content = MemoryBucket(), image(b"{}", LAYER)
    manifest = read_manifest(content, OCI_MANIFEST)
    async with bucket_mirror(tmp_path, bucket) as mirror:
        storage = mirror.app.storage
        for blob in (b"{}", LAYER):
            storage.store.put(Digest.of(blob), blob)
        imports = open_hosted_imports(mirror.config, storage, "an import")
        blobs = [blob.digest for blob in manifest.blobs]
        await asyncio.to_thread(imports.take, Repo("corp", "app"), blobs, [manifest], "v1")
    wipe(tmp_path)
    async with bucket_mirror(tmp_path, bucket) as mirror:
        client = PushClient(mirror)
        assert (await client.manifest("v1")).body == content
        assert (await client.blob(Digest.of(LAYER))).body == LAYER


@pytest.mark.parametrize("in_bucket", [False, True], ids=["cache on the disk", "cache in the bucket"])
def test_an_imported_image_is_hosted_and_not_cached(tmp_path: Path, in_bucket: bool) -> None:
    """Its bytes are in the bucket, as hosted ones, and a copy on the disk; no place of the cache has them, where an
    upstream could name their digests.
    """
    elsewhere, bundle, bucket = HostedHere(tmp_path / "elsewhere"), tmp_path / "bundle.tar", MemoryBucket()
    elsewhere.repo = Repo("corp", "app")
    elsewhere.image([LAYER], tag="v1")
    done = command("export", "corp/app:v1", "-o", bundle, "-c", _settings(tmp_path / "elsewhere", ""))
    assert done.status == 0, done
    kept = f'bucket = "s3://memory/site"\ncache_in_bucket = {json.dumps(in_bucket)}'
    config = _settings(tmp_path / "store", kept, '[bucket]\nregion = "test"')
    with bucket_opened(bucket):
        done = command("import", bundle, "-c", config)
    assert done.status == 0, done
    layout, digest = Layout(tmp_path / "store"), Digest.of(LAYER)
    assert not Path(layout.blob(digest)).exists()
    assert Path(CopiesLayout(tmp_path / "store").blob(digest)).exists()
    keys = [info.key for info in bucket.list("")]
    assert [key for key in keys if key.startswith("cache/")] == []
    assert [key for key in keys if key.startswith(f"hosted/sha256/{digest.hex[:2]}/{digest.hex}")]
    with bucket_opened(bucket):
        shown = command("show", "corp/app:v1", "--json", "-c", config)
    assert shown.json["complete"], shown


def _settings(root: Path, store: str, more: str = "") -> Path:
    file = root.with_suffix(".toml")
    upstream = '[[upstream]]\nname = "docker.io"\nurl = "http://127.0.0.1:9"'
    file.write_text(f'[store]\nroot = "{root}"\n{store}\n{more}\n[[hosted]]\nname = "corp"\n{upstream}\n')
    return file
