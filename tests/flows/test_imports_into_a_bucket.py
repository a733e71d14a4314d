"""What an import brings into a hosted registry whose content is in a bucket."""

from __future__ import annotations

import asyncio
from pathlib import Path

from mirror.app.hosting import open_hosted_imports
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_MANIFEST, read_manifest
from mirror.oci.reference import Repo
from tests.support.bucket_mirror import bucket_mirror, wipe
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
