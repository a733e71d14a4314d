"""What an export takes from a store: only what the repositories of its images may serve. That their manifests name a
blob, and that its bytes are here, proves nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from tests.support.command import mirror as command
from tests.support.hosted_here import HostedHere
from tests.support.stocked import Stocked, write_settings

SECRET = b"a layer of a private image" * 40
#: Registries do not look for the blobs that a manifest of such a type names.
_KIND = "application/vnd.example.thing.v1+json"


class Site:
    """A site with a private image, and the image `evil`, which only names a layer of it."""

    def __init__(self, folder: Path, *, hosted: bool) -> None:
        self.config = write_settings(folder / "store", more='[[hosted]]\nname = "corp"')
        self.bundle = folder / "bundle"
        stocked = Stocked(folder / "store")
        if not hosted:
            self.evil, self.private = "docker.io/library/evil:v1", "docker.io/team/private:v1"
            stocked.tag("team/private", "v1", stocked.image("team/private", [SECRET]))
            evil = stocked.manifest("library/evil", _naming(stocked.blob(SECRET, here=False)), _KIND)
            stocked.tag("library/evil", "v1", evil)
            return
        self.evil, self.private = "corp/evil:v1", "corp/private:v1"
        here = HostedHere(folder / "store")
        here.repo = Repo("corp", "private")
        here.image([SECRET], tag="v1")
        secret = here.blob(SECRET)
        here.repo = Repo("corp", "evil")
        here.manifest(_naming(secret), _KIND, tag="v1")

    def export(self, *words: str) -> Any:
        return command("export", self.evil, "-o", f"{self.bundle}/", "-c", self.config, *words)

    def has_exported(self, content: bytes) -> bool:
        return (self.bundle / "blobs" / "sha256" / Digest.of(content).hex).exists()


def _naming(layer: Mapping[str, Any]) -> dict[str, Any]:
    return {"layers": [layer]}


@pytest.mark.parametrize("hosted", [True, False])
def test_a_layer_of_another_repository_is_not_exported(hosted: bool, tmp_path: Path) -> None:
    """The image is incomplete, and its bundle gives the layer to nobody."""
    site = Site(tmp_path, hosted=hosted)
    done = site.export()
    assert done.status == 1
    assert f"{site.evil} lacks {Digest.of(SECRET)}" in done.err
    assert site.export("--allow-incomplete").status == 0
    assert not site.has_exported(SECRET)


@pytest.mark.parametrize("hosted", [True, False])
def test_a_layer_that_another_image_brings(hosted: bool, tmp_path: Path) -> None:
    """Whoever imported both would give it to both. The image that has the layer is exported whole by itself."""
    site = Site(tmp_path, hosted=hosted)
    done = site.export(site.private, "--allow-incomplete")
    assert done.status == 1
    assert f"may not serve {Digest.of(SECRET)}, which other images bring: export it by itself" in done.err
    site.evil = site.private
    assert site.export().status == 0
    assert site.has_exported(SECRET)


@pytest.mark.parametrize("hosted", [True, False])
def test_a_layer_that_the_other_side_has(hosted: bool, tmp_path: Path) -> None:
    """That it is left out of a bundle would say that it is content of the image."""
    site = Site(tmp_path, hosted=hosted)
    inventory = tmp_path / "inventory.json"
    inventory.write_text(command("inventory", "--json", "-c", site.config).out)
    done = site.export("--since", str(inventory))
    assert done.status == 1
    assert f"{site.evil} lacks {Digest.of(SECRET)}" in done.err
