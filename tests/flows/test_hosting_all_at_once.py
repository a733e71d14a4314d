"""Two workers on one disk, clients that push, pull, delete and undelete the same few images, and a collector that waits
for nobody: whatever can be pulled is whole.

Replay a failure with its seed; the order in which threads take turns is not fixed by it.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from mirror.app.building import App, build
from mirror.app.collecting import open_collector
from mirror.config import load
from mirror.errors import (
    BlobReferenced,
    BlobUnknown,
    Denied,
    ManifestBlobUnknown,
    ManifestUnknown,
    NameUnknown,
)
from mirror.oci.digest import Digest
from mirror.oci.reference import Reference, Repo
from mirror.repository.hosted import HostedRepository
from tests.support.hosted_world import Caller, image, push, read_blob, upload

REPOS = [Repo("corp", "a"), Repo("corp", "b")]
BLOBS = {Digest.of(content): content for content in (b"{}", b"one", b"two", b"three")}
IMAGES = [image(b"{}", b"one"), image(b"{}", b"two"), image(b"{}", b"three"), image(b"{}", b"one", b"two")]
TAGS = ["1", "2", "3"]
ALICE = Caller("user:alice", *REPOS)
#: Operations of each of the clients, and clients.
OPERATIONS, CLIENTS = 60, 6


class _Client:
    """Does one thing after another. What it is refused is part of the game; anything else fails the test."""

    def __init__(self, apps: Sequence[App], seed: int) -> None:
        self._apps = apps
        self._dice = random.Random(seed)
        self.broken: list[str] = []
        self.pushed = 0

    async def run(self) -> None:
        done = 0
        # on a busy machine collection may take what is pushed from under it, again and again
        while done < OPERATIONS or self.pushed <= OPERATIONS // CLIENTS:
            done += 1
            repository = _opened(self._dice.choice(self._apps), self._dice.choice(REPOS))
            refused = ManifestBlobUnknown, ManifestUnknown, BlobUnknown, BlobReferenced, Denied, NameUnknown
            with suppress(*refused):
                await self._act(repository)

    async def _act(self, repository: HostedRepository) -> None:
        dice = self._dice.random()
        if dice < 0.4:
            await self._push(repository)
        elif dice < 0.5:
            await repository.delete_tag(self._dice.choice(TAGS), ALICE)
        elif dice < 0.6:
            await repository.delete_manifest(Digest.of(self._dice.choice(IMAGES)), ALICE)
        elif dice < 0.7:
            await repository.delete_blob(self._dice.choice(list(BLOBS)), ALICE)
        elif dice < 0.8:
            references: list[Reference] = [*TAGS, *map(Digest.of, IMAGES)]
            await repository.undelete(self._dice.choice(references), ALICE)
        else:
            await self._pull(repository)

    async def _push(self, repository: HostedRepository) -> None:
        content = self._dice.choice(IMAGES)
        body = json.loads(content)
        for named in (body["config"], *body["layers"]):
            digest = Digest.parse(named["digest"])
            try:
                await repository.stat_for_push(digest, ALICE)
            except BlobUnknown:
                source = self._dice.choice([None, *REPOS])
                if not (self._dice.random() < 0.5 and await repository.mount(digest, source, ALICE)):
                    await upload(repository, BLOBS[digest], ALICE)
        await push(repository, content, ALICE, self._dice.choice(TAGS))
        self.pushed += 1

    async def _pull(self, repository: HostedRepository) -> None:
        manifest = (await repository.manifest(self._dice.choice(TAGS))).read()
        for blob in manifest.blobs:
            try:
                await read_blob(repository, blob.digest)
            except BlobUnknown:
                # the image may have been deleted meanwhile, and its blob after it, and one of them pushed again
                await asyncio.sleep(0)
                await repository.manifest(manifest.digest)
                with suppress(BlobUnknown):
                    await read_blob(repository, blob.digest)
                    continue
                await repository.manifest(manifest.digest)
                self.broken.append(f"{repository.repo}@{manifest.digest} without {blob.digest}")


def _opened(app: App, repo: Repo) -> HostedRepository:
    repository = app.router.repository(repo)
    assert isinstance(repository, HostedRepository)
    return repository


async def _whole(app: App) -> None:
    """Every tag leads to a manifest, and every manifest to its blobs."""
    for repo in REPOS:
        repository = _opened(app, repo)
        with suppress(NameUnknown):
            for tag in (await repository.tags("", 100)).items:
                await repository.manifest(tag)
        for digest in app.storage.catalog.manifest_digests(repo):
            for blob in (await repository.manifest(digest)).read().blobs:
                assert await read_blob(repository, blob.digest) == BLOBS[blob.digest]


@pytest.mark.parametrize(("seed", "keep"), [(1, "0s"), (2, "1s"), (3, "1h")])
async def test_whatever_can_be_pulled_is_whole(tmp_path: Path, seed: int, keep: str) -> None:
    """At any moment, and at the end."""
    file = tmp_path / "mirror.toml"
    file.write_text(
        f"""
        [store]
        root = "{tmp_path}/store"
        [hosting]
        grace = "0s"
        [[hosted]]
        name = "corp"
        keep_deleted = "{keep}"
        """
    )
    config = load(file)
    async with build(config, housework=False) as one, build(config, housework=False) as two:
        collector = open_collector(config, one.storage, _opened(one, REPOS[0])._verbs.parts, time.time)
        clients = [_Client([one, two], seed * 100 + number) for number in range(CLIENTS)]
        playing = asyncio.gather(*(client.run() for client in clients))
        while not playing.done():
            await collector.run()
        await playing
        assert [broken for client in clients for broken in client.broken] == []
        assert sum(client.pushed for client in clients) > OPERATIONS
        await _whole(two)
        await collector.run()
        await _whole(one)
