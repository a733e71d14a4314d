"""`ls`, `show`, `verify` and `misses` beside a running mirror that has an upstream."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirror.app.storage import SCRUB_LOCK
from mirror.oci.digest import Digest
from mirror.store.local.layout import Layout
from mirror.store.local.locks import FileLocks
from tests.support.command import output
from tests.support.fake_registry import FakeRegistry
from tests.support.live_mirror import noise
from tests.support.mirror_process import MirrorProcess, write_config
from tests.support.process import CommandFailed, eventually

_LAYER = noise(1 << 20)
_IMAGE = "docker.io/library/app:v1"


class _Site:
    def __init__(self, directory: Path, config: Path, mirror: MirrorProcess) -> None:
        self.config = config
        self.mirror = mirror
        self.layout = Layout(directory / "store")

    def cli(self, command: str, *words: str) -> str:
        return output(command, "--config", self.config, *words)

    def pull(self) -> None:
        assert self.mirror.get("/v2/library/app/manifests/v1")[0] == 200
        for content in (_LAYER, b"{}"):
            assert self.mirror.get(f"/v2/library/app/blobs/{Digest.of(content)}")[2] == content
            eventually(Path(self.layout.blob(Digest.of(content))).exists, "it is stored")

    def damage(self) -> Path:
        file = Path(self.layout.blob(Digest.of(_LAYER)))
        file.chmod(0o600)
        file.write_bytes(_LAYER[:-1])
        return file


@pytest.fixture
def site(registry: FakeRegistry, tmp_path: Path) -> Iterator[_Site]:
    """Two workers, with all of v1."""
    registry.add_image("library/app", "v1", [_LAYER])
    more = '[[pin]]\nmatch = "docker.io/library/app:v*"\nreason = "ours"'
    config = write_config(tmp_path, {"docker.io": registry.url}, more=more)
    with MirrorProcess(config) as mirror:
        running = _Site(tmp_path, config, mirror)
        running.pull()
        yield running


def test_verify_repairs_under_the_running_mirror(site: _Site, registry: FakeRegistry) -> None:
    """Of everything or of one image: exit status 0, and clients get it whole without asking upstream again."""
    for words in ((), (_IMAGE,)):
        file = site.damage()
        said = site.cli("verify", *words)
        assert "3 blobs" in said
        assert "1 damaged: 1 repaired" in said
        assert file.read_bytes() == _LAYER
    registry.forget()
    site.pull()
    assert not registry.requests


def test_verify_fetches_what_an_image_lacks(site: _Site) -> None:
    """Without repair it only says so."""
    file = Path(site.layout.blob(Digest.of(_LAYER)))
    file.unlink()
    with pytest.raises(CommandFailed, match="exit code 1"):
        site.cli("verify", _IMAGE, "--no-repair")
    report = json.loads(site.cli("verify", _IMAGE, "--json"))
    assert (report["missing"], report["lost"], report["damaged"]) == ([], [], 0)
    assert file.read_bytes() == _LAYER


def test_what_verify_refuses(site: _Site) -> None:
    """Another one at work, an image that is not here, a rate that is none."""
    lease = FileLocks(site.layout).try_hold_now(SCRUB_LOCK)
    assert lease is not None
    with pytest.raises(CommandFailed, match=r"exit code 1\n.*another process"):
        site.cli("verify")
    for words, code in ((["never/was"], 1), (["--rate", "fast"], 2), (["--rate", "0"], 2), (["A B"], 2)):
        with pytest.raises(CommandFailed, match=f"exit code {code}\n"):
            site.cli("verify", *words)


def test_records_without_content_are_reported(site: _Site) -> None:
    """They are harmless here: the next pull mends them. Of such an image nothing can be told, so it is not listed."""
    [entry] = map(json.loads, site.cli("ls", "--json").splitlines())
    Path(site.layout.blob(Digest.parse(entry["digest"]))).unlink()
    assert f"record without content: docker.io/library/app@{entry['digest']}" in site.cli("verify")
    assert site.cli("ls", "--json") == ""


def test_pins_are_listed_with_their_reason(site: _Site) -> None:
    """Those by rules of the configuration as well."""
    [entry] = map(json.loads, site.cli("ls", "app", "--json").splitlines())
    assert (entry["image"], entry["pinned"], entry["complete"]) == (_IMAGE, True, True)
    assert entry["last_pull"]
    [pinned] = json.loads(site.cli("show", "app:v1", "--json"))["pins"]
    assert (pinned["reason"], pinned["rule"]) == ("ours", "docker.io/library/app:v*")
    assert "ours" in site.cli("show", f"app@{entry['digest']}")


def test_misses_of_an_open_mirror(site: _Site) -> None:
    """There are none: upstream is asked."""
    assert site.mirror.get("/v2/library/app/manifests/none")[0] == 404
    assert "0 images" in site.cli("misses")
    with pytest.raises(CommandFailed, match="exit code 2"):
        site.cli("misses", "--json", "--images")
