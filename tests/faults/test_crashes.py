"""`kill -9` and power cuts, again and again, in the middle of everything. What is left must be true, and what was
finished must be there.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mirror.oci.digest import Digest
from mirror.store.local.layout import digest_of_ingest
from tests.faults.conftest import APPS, Tally, add_apps
from tests.support.ext4 import Ext4, refusal
from tests.support.fake_registry import FakeRegistry
from tests.support.forked_workers import ForkedWorkers
from tests.support.mirror_process import write_config
from tests.support.process import eventually
from tests.support.scripted import Answering, Request, Script, Stall
from tests.support.stubborn import Stubborn

#: Sizes in bytes; manifests have others, and are written in another way.
_LAYERS = (37, 70_000, 300_000, 800_000)
_IN_PARTS = (300_000, 800_000)


@pytest.fixture
def library(registry: FakeRegistry) -> FakeRegistry:
    """Eight images of four layers each, from a few bytes to 800 KB, one layer shared by all; about 9 MB."""
    add_apps(registry, _LAYERS)
    return registry


def _final_names(root: Path) -> dict[Digest, Path]:
    """The files under final names."""
    found = {}
    for file in (root / "blobs").glob("*/*/*"):
        found[Digest.parse(f"{file.parent.parent.name}:{file.name}")] = file
    return found


def _corrupt(root: Path) -> list[str]:
    """The published files whose bytes do not match their name."""
    return [str(digest) for digest, file in _final_names(root).items() if not digest.matches(file.read_bytes())]


def _settled(root: Path) -> set[Digest]:
    """Blobs whose commit is over: its last step drops the state file, so who has none by now had its folder synced."""
    published = _final_names(root)
    growing = {digest_of_ingest(file.name.removesuffix(".state")) for file in (root / "ingest").glob("*.state")}
    layers = {digest for digest, file in published.items() if file.stat().st_size in _LAYERS}
    return layers - growing


class _Moment(Stall):
    """A moment of an upstream that limits the rate of each connection."""

    def wait(self) -> None:
        """By the upstream's thread."""
        time.sleep(0.01)


def _slowly(request: Request, answer: Answering) -> Script:
    [head, body] = answer(request)
    assert isinstance(body, bytes)
    pieces = (body[at : at + 70_000] for at in range(0, len(body), 70_000))
    return [head, *(step for piece in pieces for step in (_Moment(), piece))]


def _wait_for_parts(registry: FakeRegistry, root: Path) -> None:
    """Returns while a blob comes over several connections, some of which have brought bytes that are not in its growing
    file yet. Clients have to pull.
    """

    def parts() -> int:
        return sum("bytes=0-" not in (request.header("Range") or "bytes=0-") for request in registry.of_kind("blobs"))

    before = parts()
    eventually(lambda: parts() > before and any((root / "ingest").glob("*.map")), "bytes come out of turn")


_EITHER = pytest.mark.parametrize("small_parts", [False, True], ids=["whole", "in parts"])


@_EITHER
def test_41_killed_again_and_again(
    library: FakeRegistry, tmp_path: Path, times: Callable[[str, int], int], tally: Tally, small_parts: bool
) -> None:
    """Row 41, 58: however often the worker is killed while it fills, evicts, starts or writes its index: no client gets
    a wrong byte, no published file is wrong, pulls go on by ordinary retry, and nothing is left over at the end.
    """
    kills = times("KILLS", 15 if small_parts else 30)
    # a third of the images fits: there is always something to fill and to evict
    config = write_config(tmp_path, {"docker.io": library.url}, workers=1, capacity="4MB", tag_ttl="0s")
    chance = random.Random(1)
    corrupt: list[str] = []
    if small_parts:
        library.fail("blobs", _slowly, times=50_000)
    with (
        ForkedWorkers(config, small_parts=small_parts) as workers,
        Stubborn(workers.port, APPS, tries=400, pause=0.01) as clients,
    ):
        for number in range(kills):
            # one in five dies while it starts
            if chance.random() < 0.2:
                workers.start(wait=False)
                time.sleep(chance.uniform(0, 0.08))  # the moment of the fault, not a wait for anything
            else:
                workers.start()
                if small_parts:
                    _wait_for_parts(library, tmp_path / "store")
                time.sleep(chance.uniform(0, 0.05 if small_parts else 0.15))
            workers.kill()
            if number % 10 == 0:
                corrupt += _corrupt(tmp_path / "store")
        workers.start()
        clients.wait_for_pulls(5)
        clients.leave()
        workers.stop()
        log = workers.log.read_text()
    corrupt += _corrupt(tmp_path / "store")
    tally(
        kills=kills,
        pulls=clients.pulled,
        requests=clients.requests,
        broken=clients.broken,
        corrupt=len(corrupt),
    )
    assert not clients.corrupt
    assert not corrupt
    assert not clients.failed
    assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:4000]
    assert "crashed" not in log


@pytest.mark.skipif(refusal() is not None, reason=f"power cannot be cut here: {refusal()}")
@_EITHER
def test_42_power_cuts(
    library: FakeRegistry, tmp_path: Path, times: Callable[[str, int], int], tally: Tally, small_parts: bool
) -> None:
    """Row 42: after a power cut at any moment every published file is what its name says, every blob whose fill was
    over is still there, and the mirror serves on.
    """
    cuts = times("CUTS", 8)
    chance = random.Random(2)
    lost: list[str] = []
    corrupt: list[str] = []
    served_wrong: list[str] = []
    failed: list[str] = []
    pulls = kept = 0
    if small_parts:
        library.fail("blobs", _slowly, times=50_000)
    with Ext4(tmp_path) as disk:
        config = write_config(disk.mount_point, {"docker.io": library.url}, workers=1, capacity="60MB", tag_ttl="0s")
        text = config.read_text()
        config = tmp_path / "mirror.toml"
        config.write_text(text)
        root = disk.mount_point / "store"
        with ForkedWorkers(config, small_parts=small_parts) as workers:
            for number in range(cuts):
                workers.start(boot=number + 1)
                with Stubborn(workers.port, APPS, clients=3, tries=400, pause=0.01, seed=number) as clients:
                    if small_parts:
                        _wait_for_parts(library, root)
                    time.sleep(chance.uniform(0.0, 0.05 if small_parts else 0.3))  # the moment of the fault
                    settled = _settled(root)
                    disk.cut()
                    workers.kill()
                    disk.remount()
                    corrupt += _corrupt(root)
                    kept += len(settled)
                    lost += [str(digest) for digest in settled if digest not in _final_names(root)]
                    workers.start(boot=1000 + number)
                    clients.wait_for_pulls(2)
                    clients.leave()
                    served_wrong += clients.corrupt
                    failed += clients.failed
                    pulls += clients.pulled
                workers.kill()
                if small_parts or number % 4 == 3:
                    # cold again: all, or what comes in parts
                    for file in _final_names(root).values():
                        if not small_parts or file.stat().st_size >= min(_IN_PARTS):
                            file.unlink()
            log = workers.log.read_text()
    tally(cuts=cuts, pulls=pulls, kept=kept, corrupt=len(corrupt), lost=len(lost))
    # bytes ahead that a cut has spoilt would be found at the end of the blob, by its digest
    assert "do not match" not in log
    assert kept, "nothing was finished before any cut, so nothing was tried"
    assert not served_wrong
    assert not corrupt
    assert not lost
    assert not failed
    assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:4000]
