"""A backup that is made while clients push and delete, and the mirror that is restored from it."""

from __future__ import annotations

import asyncio
import shutil
import time
from itertools import count
from pathlib import Path

from mirror.oci.digest import Digest
from mirror.store.hosted.backup_folder import BackupFolder, BackupReport
from tests.support.live_mirror import LiveMirror, noise
from tests.support.push_client import PushClient, hosting_mirror


def _back_up(mirror: LiveMirror, folder: Path) -> BackupReport:
    storage = mirror.app.storage
    return BackupFolder(storage.layout, storage.store.id, ["corp"], folder, now=time.time).back_up()


async def _pull(client: PushClient, tag: str, content: bytes, layer: bytes) -> None:
    manifest = await client.manifest(tag)
    assert (manifest.status, manifest.body) == (200, content), tag
    blob = await client.blob(Digest.of(layer))
    assert (blob.status, blob.body) == (200, layer), tag


async def test_a_backup_under_pushes_and_deletions(tmp_path: Path) -> None:
    """Everything that was acknowledged before the backup began, and not deleted, can be pulled from a mirror whose root
    was empty; each tag that is there has all of its image; and the mirror takes pushes again.
    """
    folder, layers = tmp_path / "backup", [noise(200_000 + number) for number in range(8)]
    async with hosting_mirror(tmp_path / "first") as mirror:
        client = PushClient(mirror)
        contents = [await client.push_image(f"v{number}", layer) for number, layer in enumerate(layers)]
        stop = asyncio.Event()

        async def disturb() -> None:
            for number in count():
                if stop.is_set() and number > 3:
                    return
                there = PushClient(mirror, f"corp/busy-{number % 3}")
                content = await there.push_image(f"w{number}", noise(50_000 + number))
                if number % 2:
                    target = f"/v2/{there.name}/manifests/{Digest.of(content)}"
                    assert (await there.ask("DELETE", target)).status == 202

        disturbing = asyncio.create_task(disturb())
        for _ in range(2):
            report = await asyncio.to_thread(_back_up, mirror, folder)
            assert report.problems == []
        stop.set()
        await disturbing
    root = tmp_path / "second" / "store"
    root.mkdir(parents=True)
    shutil.copytree(folder / "hosted", root / "hosted")
    shutil.copytree(folder / "records", root, dirs_exist_ok=True)
    async with hosting_mirror(tmp_path / "second") as mirror:
        client = PushClient(mirror)
        for number, (content, layer) in enumerate(zip(contents, layers, strict=True)):
            await _pull(client, f"v{number}", content, layer)
        for name in ("corp/busy-0", "corp/busy-1", "corp/busy-2"):
            there = PushClient(mirror, name)
            listed = await there.ask("GET", f"/v2/{name}/tags/list")
            for tag in listed.json["tags"] if listed.status == 200 else ():
                number = int(tag.removeprefix("w"))
                await _pull(there, tag, (await there.manifest(tag)).body, noise(50_000 + number))
        again = await client.push_image("new", noise(1000))
        await _pull(client, "new", again, noise(1000))
