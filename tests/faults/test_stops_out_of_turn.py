"""SIGTERM while bytes come out of turn: the mirror ends in time and leaves partials only, and a new one goes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from mirror.oci.digest import Digest
from mirror.policy.fills.span_blocks import BLOCK
from mirror.store.local.blobs import LocalStore
from mirror.store.local.layout import Layout
from tests.support.fake_registry import FakeRegistry, stall
from tests.support.live_mirror import noise
from tests.support.mirror_process import MirrorProcess, write_config
from tests.support.out_of_turn import bytes_out_of_turn
from tests.support.process import PATIENCE, eventually
from tests.support.scripted import Answering, Request, Script, Stall
from tests.support.waiting_client import WaitingClient

_SMALL = noise(8_000_000, seed=65)
_LARGE = noise(48 << 20, seed=66)
_PARTIAL = {"", ".state", ".spans", ".map", ".served"}


@pytest.fixture
def gate() -> Iterator[Stall]:
    """Where upstream stands still."""
    gate = Stall()
    yield gate
    gate.release()


def _config(folder: Path, registry: FakeRegistry, *, share: float = 1.0, lazy: bool = True) -> Path:
    config = write_config(folder, {"docker.io": registry.url}, workers=1)
    text = config.read_text().replace("workers = 1", 'workers = 1\ndrain_timeout = "500ms"')
    if lazy:
        text = text.replace(
            'tag_ttl = "5m"', f'tag_ttl = "5m"\nranges = "lazy"\nlazy_share = {share}\nlazy_pause = "0s"'
        )
    config.write_text(text)
    return config


def _left(folder: Path) -> set[str]:
    """The kinds of files in `ingest/`."""
    return {file.suffix for file in (folder / "store" / "ingest").iterdir()}


def _count(folder: Path) -> int:
    """The bytes of the small layer that came out of turn."""
    return bytes_out_of_turn(LocalStore(Layout(folder / "store")), Digest.of(_SMALL))


@pytest.mark.parametrize("follows", [False, True])
def test_65_ending_while_a_part_is_fetched(registry: FakeRegistry, tmp_path: Path, gate: Stall, follows: bool) -> None:
    """Row 65: or while the whole follows. What was here before is not fetched again."""
    registry.add_image("library/app", "v1", [_SMALL])
    config = _config(tmp_path, registry, share=0.0 if follows else 1.0)
    at, part = f"/v2/library/app/blobs/{Digest.of(_SMALL)}", {"Range": "bytes=5000000-5199999"}

    def answer(request: Request, answering: Answering) -> Script:
        is_part = (request.header("Range") or "").endswith(f"-{-(-5_200_000 // BLOCK) * BLOCK - 1}")
        return answering(request) if is_part and follows else stall(gate, 100_000)(request, answering)

    registry.fail("blobs", answer, times=1000)
    with MirrorProcess(config) as mirror, ExitStack() as stack:
        assert mirror.get("/v2/library/app/manifests/v1")[0] == 200
        client = stack.enter_context(WaitingClient(mirror, at, part))
        assert gate.reached.wait(PATIENCE)
        eventually(lambda: _count(tmp_path) >= BLOCK, "the first block is here")
        assert mirror.stop() == 0
        stack.close()
        assert client.body == _SMALL[5_000_000:5_200_000] if follows else client.body != _SMALL[5_000_000:5_200_000]
    assert _left(tmp_path) <= _PARTIAL
    registry.heal()
    gate.release()
    before = len(registry.of_kind("blobs", "GET"))
    with MirrorProcess(config) as mirror:
        status, _, body = mirror.get(at, part)
        assert (status, body) == (206, _SMALL[5_000_000:5_200_000])
        assert mirror.get(at)[2] == _SMALL
        assert mirror.stop() == 0
    starts = [request.start for request in registry.of_kind("blobs", "GET")[before:]]
    first = 5_000_000 // BLOCK * BLOCK
    # the first block of the part was whole
    assert starts
    assert first not in starts
    assert not _left(tmp_path)


def test_65_ending_while_several_connections_fill(registry: FakeRegistry, tmp_path: Path, gate: Stall) -> None:
    """Row 65: the first request is answered, and the further ones stand still in their middle."""
    registry.add_image("library/app", "v1", [_LARGE])
    config = _config(tmp_path, registry, lazy=False)
    at = f"/v2/library/app/blobs/{Digest.of(_LARGE)}"

    def answer(request: Request, answering: Answering) -> Script:
        return stall(gate, 1 << 20)(request, answering) if request.start else answering(request)

    registry.fail("blobs", answer, times=1000)
    with MirrorProcess(config) as mirror, ExitStack() as stack:
        assert mirror.get("/v2/library/app/manifests/v1")[0] == 200
        client = stack.enter_context(WaitingClient(mirror, at, {}))
        assert gate.reached.wait(PATIENCE)
        assert mirror.stop() == 0
        stack.close()
        assert client.body != _LARGE
    assert _left(tmp_path) <= _PARTIAL
    registry.heal()
    gate.release()
    before = len(registry.of_kind("blobs", "GET"))
    with MirrorProcess(config) as mirror:
        assert mirror.get(at)[2] == _LARGE
        assert mirror.stop() == 0
    # what the first request has brought stays
    assert min(request.start for request in registry.of_kind("blobs", "GET")[before:]) > 0
    assert not _left(tmp_path)
