"""Records and layers of a whole mirror that its disk has damaged: what clients and operators do about it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.store.local.layout import Layout
from mirror.store.records.record_keys import file_name
from tests.support.live_mirror import noise, until
from tests.support.push_client import PushClient, hosting_mirror

_APP = Repo("corp", "app")
_LAYER = noise(70_000)


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[PushClient]:
    """Of a mirror that hosts `corp`."""
    async with hosting_mirror(tmp_path) as mirror:
        yield PushClient(mirror)


def _damage(client: PushClient, folder: str, digest: Digest) -> None:
    """As a disk would: nobody is told, so the workers look again after some seconds."""
    file = Path(folder, file_name(digest))
    assert file.exists()
    file.write_bytes(b"\0" * 20)
    client.mirror.app.storage.hosted.records.note_change(_APP)


def _damaged(folder: str) -> list[Path]:
    return [file for file in Path(folder).iterdir() if file.read_bytes().startswith(b"\0")]


async def test_a_damaged_link_goes_with_the_next_push(client: PushClient) -> None:
    """Pulls say so; a client that pushes the image sends the layer again, and then it can be pulled."""
    await client.push_image("v1", _LAYER)
    digest = Digest.of(_LAYER)
    _damage(client, Layout(client.mirror.root).links(_APP), digest)
    assert (await client.blob(digest)).status == 503
    assert (await client.blob(digest, method="HEAD")).status == 404
    await client.push_image("v1", _LAYER)
    assert (await client.blob(digest)).body == _LAYER


async def test_a_damaged_manifest_can_be_pulled_pushed_and_deleted(client: PushClient) -> None:
    """And is repaired by a round of collection."""
    content = await client.push_image("v1", _LAYER)
    digest, manifests = Digest.of(content), Layout(client.mirror.root).manifests(_APP)
    for repair in ("push", "collect", "delete"):
        _damage(client, manifests, digest)
        assert (await client.manifest("v1")).body == content
        assert (await client.manifest(digest, method="HEAD")).status == 200
        if repair == "push":
            assert (await client.put(content, "v1")).status == 201
        elif repair == "collect":
            await client.mirror.app.admin.hosted.collect()
        else:
            assert (await client.ask("DELETE", f"/v2/corp/app/manifests/{digest}")).status == 202
            assert (await client.manifest("v1")).status == 404
        assert not _damaged(manifests), repair


# ------------------------------------------------------------------------- layers with other bytes, as many as before


def _rot(client: PushClient, digest: Digest) -> Path:
    """Nobody reads all bytes of a stored blob before they are sent, so nobody notices."""
    file = Path(Layout(client.mirror.root).hosted_blob(digest))
    size = file.stat().st_size
    file.chmod(0o600)
    file.write_bytes(b"\0" * size)
    return file


async def test_155_a_layer_that_is_sent_again_replaces_a_damaged_one(client: PushClient) -> None:
    """By clients that do not ask what is here: the bytes that they send were verified, those that are here long ago."""
    await client.push_image("v1", _LAYER)
    digest = Digest.of(_LAYER)
    _rot(client, digest)
    assert (await client.blob(digest)).body != _LAYER
    await client.push_blob(_LAYER)
    assert (await client.blob(digest)).body == _LAYER


async def test_155_an_image_that_is_pushed_again_is_read_again(client: PushClient) -> None:
    """By clients that ask: the first push finds the damage, and the next one sends the layer."""
    manifest = await client.push_image("v1", _LAYER)
    digest = Digest.of(_LAYER)
    file = _rot(client, digest)
    assert (await client.blob(digest, method="HEAD")).status == 200
    # another tag is no such wish, and neither is another image
    assert (await client.put(manifest, "v2")).status == 201
    assert file.exists()
    assert (await client.put(manifest, "v1")).status == 201
    await until(lambda: not file.exists())
    assert (await client.blob(digest, method="HEAD")).status == 404
    await client.push_image("v1", _LAYER)
    assert (await client.blob(digest)).body == _LAYER
