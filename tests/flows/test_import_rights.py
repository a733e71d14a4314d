"""What an import lets a repository serve: what it brought, what the repository may serve already, or what the signer
says that this side has. That its manifests name a blob proves nothing.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest

from mirror.app.building import build
from mirror.config import load
from mirror.errors import BlobUnknown, IndexUnavailable
from mirror.eviction.reconcile import is_whole, reconcile
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from tests.support.command import Done
from tests.support.command import mirror as command
from tests.support.fake_registry import FakeRegistry
from tests.support.live_mirror import PATIENCE, live_mirror
from tests.support.stocked import Stocked, write_settings

PRIVATE, EVIL = Repo("docker.io", "team/private"), Repo("docker.io", "library/evil")
SECRET, OWN = b"a layer of a private image" * 40, b"a layer of its own" * 40
_SEALED = '[[route]]\nmatch = "docker.io/**"\noffline = true'


class Sites:
    """An isolated site with a private image, and another that exports images which only name a layer of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.isolated = Stocked(folder / "isolated")
        self.config = write_settings(self.isolated.root, more=_SEALED)
        self.elsewhere = Stocked(folder / "elsewhere")
        self.other_config = write_settings(self.elsewhere.root)
        self.isolated.tag("team/private", "v1", self.isolated.image("team/private", [SECRET]))
        self.elsewhere.tag("library/evil", "v1", self.elsewhere.image("library/evil", [SECRET, OWN]))

    def bundle(self, *words: str | Path) -> Path:
        """All but what the isolated site has."""
        inventory, made = self.folder / "inventory.json", self.folder / "bundle.tar"
        inventory.write_text(command("inventory", "--json", "-c", self.config).out)
        done = command("export", "evil:v1", "--since", inventory, "-o", made, "-c", self.other_config, *words)
        assert done.status == 0, done
        return made

    def take(self, bundle: Path, *words: str | Path) -> Done:
        """On the isolated side."""
        return command("import", bundle, "-c", self.config, *words)

    def serves(self, repo: Repo, content: bytes) -> bool:
        """Whether a process of the isolated site that knows nothing gives these bytes through this repository."""
        return asyncio.run(self._serves(repo, Digest.of(content)))

    async def _serves(self, repo: Repo, digest: Digest) -> bool:
        async with build(load(self.config)) as app:
            # an index that was lost is rebuilt, and grants no more for that
            await app.storage.index.clear()
            granted = await self._gives(app.router.repository(repo), digest)
            async with asyncio.timeout(PATIENCE):
                while not await is_whole(app.storage.index):
                    # the mirror may rebuild it as well, and one of the two gives way
                    with suppress(IndexUnavailable):
                        await reconcile(app.storage.store, app.storage.catalog, app.storage.index)
            assert await self._gives(app.router.repository(repo), digest) == granted
        return granted

    async def _gives(self, repository: object, digest: Digest) -> bool:
        try:
            content = await repository.blob(digest)  # type: ignore[attr-defined]
        except BlobUnknown:
            return False
        content.close()
        return True


@pytest.fixture
def sites(tmp_path: Path) -> Sites:
    """Two of them."""
    return Sites(tmp_path)


def test_77_a_bundle_that_names_what_it_does_not_bring(sites: Sites) -> None:
    """Row 77: refused, though the bytes are here, and nothing was taken in."""
    done = sites.take(sites.bundle())
    assert done.status == 1
    assert f"{Digest.of(SECRET)} is neither in the source nor in this mirror for that repository" in done.err
    assert sites.isolated.tagged("library/evil") is None


def test_77_a_partial_import_grants_what_it_brought(sites: Sites) -> None:
    """Row 77: `--allow-incomplete` takes the image in without the layer, and with no right to it; the layer comes with
    a later bundle that has it.
    """
    bundle = sites.bundle()
    assert sites.take(bundle, "--allow-incomplete").status == 0
    assert sites.isolated.tagged("library/evil") is not None
    assert sites.serves(EVIL, OWN)
    assert not sites.serves(EVIL, SECRET)
    assert sites.serves(PRIVATE, SECRET)
    assert sites.take(bundle, "--allow-incomplete").status == 0
    assert not sites.serves(EVIL, SECRET)
    whole = sites.folder / "whole.tar"
    assert command("export", "evil:v1", "-o", whole, "-c", sites.other_config).status == 0
    assert sites.take(whole).status == 0
    assert sites.serves(EVIL, SECRET)


def test_77_what_comes_later_is_not_granted_either(sites: Sites) -> None:
    """Row 77: a layer that was nowhere at the time of the import, and comes with a private image afterwards."""
    bundle = sites.bundle()
    other = Stocked(sites.folder / "isolated 2")
    sites.config = write_settings(other.root, more=_SEALED)
    assert sites.take(bundle, "--allow-incomplete").status == 0
    other.tag("team/private", "v1", other.image("team/private", [SECRET]))
    assert sites.serves(PRIVATE, SECRET)
    assert not sites.serves(EVIL, SECRET)


def test_what_the_repository_may_serve_already(sites: Sites) -> None:
    """The next version of an image may leave out what the one before has brought, signed or not."""
    sites.isolated.tag("library/evil", "v0", sites.isolated.image("library/evil", [SECRET]))
    assert sites.take(sites.bundle()).status == 0
    assert sites.serves(EVIL, SECRET)


@pytest.mark.parametrize("signed", [False, True])
def test_what_a_signed_inventory_has_left_out(sites: Sites, signed: bool) -> None:
    """Whoever signed has said that this side has it for these images."""
    key = sites.folder / "site"
    assert command("keygen", key).status == 0
    bundle = sites.bundle("--sign", key.with_suffix(".key"))
    # a signature that nobody checks is none
    done = sites.take(bundle, *(("--verify", key.with_suffix(".pub")) if signed else ()))
    assert done.status == (0 if signed else 1), done
    if signed:
        assert sites.serves(EVIL, SECRET)


async def test_a_mirror_with_an_upstream_asks_it(registry: FakeRegistry, tmp_path: Path) -> None:
    """What was not brought is served if upstream has it for this repository, and not otherwise; also after the manifest
    was evicted, and put back from memory.
    """
    sites = await asyncio.to_thread(Sites, tmp_path)
    bundle = await asyncio.to_thread(sites.bundle)
    root = sites.isolated.root
    done = await asyncio.to_thread(command, "import", bundle, "--allow-incomplete", "-c", sites.config)
    assert done.status == 0, done
    digest = sites.isolated.tagged("library/evil")
    assert digest
    registry.add_image("team/private", "v1", [SECRET])
    target = f"/v2/library/evil/blobs/{Digest.of(SECRET)}"
    async with live_mirror(root, {"docker.io": registry.url}) as mirror:
        assert (await mirror.ask(f"/v2/library/evil/manifests/{digest}")).status == 200
        assert (await mirror.ask(target)).status == 404
        mirror.app.storage.store.delete(digest)
        mirror.clock.forward(60)
        assert (await mirror.ask(f"/v2/library/evil/manifests/{digest}")).status == 200
        assert mirror.blob_file(digest).exists()
        mirror.clock.forward(60)
        assert (await mirror.ask(target)).status == 404
        record = mirror.app.storage.catalog.get_manifest(EVIL, digest)
        assert record
        assert record.grants is not None
        assert Digest.of(SECRET) not in record.grants
    registry.add_blob("library/evil", SECRET)
    async with live_mirror(root, {"docker.io": registry.url}) as mirror:
        assert (await mirror.ask(target)).body == SECRET
