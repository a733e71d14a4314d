"""`kill -9` and power cuts while clients push, move tags and delete. What was acknowledged stays so; nothing is seen in
part.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from mirror.oci.digest import Digest
from tests.faults.conftest import Tally
from tests.support.breaking_steps import Steps
from tests.support.ext4 import Ext4, refusal
from tests.support.forked_workers import ForkedWorkers
from tests.support.images import sha256
from tests.support.mirror_process import write_config
from tests.support.process import eventually
from tests.support.pushers import Pushers
from tests.support.step_client import CONFIG, StepClient

#: Whoever asks may do everything. Uploads that a fault has interrupted stay open for the rest of the test.
_HOSTED: Final = """
    [[hosted]]
    name = "corp"
    keep_deleted = "{keep_deleted}"
    [hosting]
    grace = "{grace}"
    collect_every = "{collect_every}"
    max_uploads = 100000
    max_uploads_per_caller = 100000
    [[access.rule]]
    effect = "allow"
    callers = ["*"]
    actions = ["pull", "push", "overwrite", "delete"]
"""
#: Nothing is collected during a test.
_GRACE: Final = _HOSTED.format(keep_deleted="7d", grace="1d", collect_every="1h")
#: Whatever is not named goes at once.
_NO_GRACE: Final = _HOSTED.format(keep_deleted="0s", grace="1s", collect_every="1s")


def _wrong_files(root: Path) -> list[str]:
    """Hosted files whose bytes are not what their name says."""
    wrong = []
    for file in (root / "hosted").glob("*/*/*"):
        digest = Digest.parse(f"{file.parent.parent.name}:{file.name}")
        try:
            content = file.read_bytes()
        except FileNotFoundError:
            continue  # it was collected
        if not digest.matches(content):
            wrong.append(str(digest))
    return wrong


def _first_seed() -> int:
    return int(os.environ.get("MIRROR_FAULTS_SEED", "1"))


def test_90_91_92_killed_again_and_again(tmp_path: Path, times: Callable[[str, int], int], tally: Tally) -> None:
    """Rows 87, 90 to 92: however often the worker is killed while it takes pushes and deletes and collects, every
    acknowledged push can be pulled whole, every acknowledged deletion is one, and at the end nothing is left over.
    """
    kills = times("KILLS", 30)
    chance = random.Random(_first_seed())
    config = write_config(tmp_path, {}, workers=1, more=_NO_GRACE)
    root = tmp_path / "store"
    read = 0
    with ForkedWorkers(config) as workers, Pushers(workers.port, seed=_first_seed()) as pushers:
        for _ in range(kills):
            # one in five dies while it starts
            if chance.random() < 0.2:
                workers.start(wait=False)
                time.sleep(chance.uniform(0, 0.08))  # the moment of the fault, not a wait for anything
                workers.kill()
            workers.start()
            pushers.rest()
            read += pushers.look()
            assert not pushers.wrong
            pushers.go()
            time.sleep(chance.uniform(0, 0.25))
            workers.kill()
        workers.start()
        pushers.wait_for(8)
        pushers.rest()
        read += pushers.look()
        assert not pushers.wrong
        assert not _wrong_files(root)
        pushers.delete_all()
        eventually(lambda: not list((root / "hosted").glob("*/*/*")), "everything is collected")
        workers.stop()
        log = workers.log.read_text()
    tally(kills=kills, **_counted(pushers), read=read)
    assert not pushers.wrong
    assert pushers.statuses.keys() <= {0, 200, 201, 202, 204, 404, 409, 416, 503}
    assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:4000]
    assert "crashed" not in log


def _counted(pushers: Pushers) -> dict[str, int]:
    """For the tally: acknowledged changes by kind."""
    return {kind.replace(" ", "_"): count for kind, count in sorted(pushers.acknowledged.items())}


@pytest.mark.skipif(refusal() is not None, reason=f"power cannot be cut here: {refusal()}")
@pytest.mark.parametrize("collecting", [False, True])
def test_90_91_92_power_cuts(tmp_path: Path, times: Callable[[str, int], int], tally: Tally, collecting: bool) -> None:
    """Rows 90 to 92: after a power cut at any moment every acknowledged push can be pulled whole, every acknowledged
    deletion is one, no tag names what is not there, and no file has other bytes than its name says.
    """
    cuts = times("CUTS", 6)
    chance = random.Random(_first_seed())
    wrong: list[str] = []
    read = 0
    with Ext4(tmp_path) as disk:
        config = write_config(disk.mount_point, {}, workers=1, more=_NO_GRACE if collecting else _GRACE)
        text = config.read_text()
        config = tmp_path / "mirror.toml"
        config.write_text(text)
        root = disk.mount_point / "store"
        with (
            ForkedWorkers(config) as workers,
            Pushers(workers.port, seed=_first_seed(), blobs_stay=not collecting) as pushers,
        ):
            workers.start(boot=1)
            for number in range(cuts):
                pushers.go()
                time.sleep(chance.uniform(0.0, 0.8))  # the moment of the fault
                pushers.lose()
                disk.cut()
                # nothing reaches the disk any more, so nothing may be acknowledged
                time.sleep(chance.uniform(0.0, 0.05))
                workers.kill()
                disk.remount()
                wrong += _wrong_files(root)
                workers.start(boot=number + 2)
                pushers.rest()
                read += pushers.look()
                assert not pushers.wrong
                assert not wrong
            log = workers.log.read_text()
    tally(cuts=cuts, **_counted(pushers), read=read)
    assert not pushers.wrong
    assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:4000]


# ------------------------------------------------------------------------------------------ before each single step


def _blob_is_here(client: StepClient) -> bool:
    status, _, body = client.ask("GET", f"blobs/{sha256(client.second_layer)}")
    assert (status, body) == (200, client.second_layer) or status == 404, status
    return status == 200


def _tag_has_moved(client: StepClient) -> bool:
    first, second = sha256(client.first), sha256(client.second)
    now = client.digest_of("v1")
    assert now in (first, second)
    assert now == first or client.digest_of(second) == second
    assert client.digest_of("stable") == client.digest_of(first) == first
    return now == second


def _tag_is_gone(client: StepClient) -> bool:
    first = sha256(client.first)
    now = client.digest_of("v1")
    assert now in (first, None)
    assert client.digest_of("stable") == client.digest_of(first) == first
    return now is None


def _manifest_is_gone(client: StepClient) -> bool:
    [now] = {client.digest_of(reference) for reference in (sha256(client.first), "v1", "stable")}
    listed = client.ask("GET", "tags/list")[2]
    assert now is None or json.loads(listed)["tags"] == ["stable", "v1"]
    assert now is not None or b"v1" not in listed
    return now is None


@dataclass(frozen=True, slots=True)
class _Change:
    """One change of a repository. `seen` fails if what a client sees is neither the old nor the new state."""

    prepare: Callable[[StepClient], object]
    make: Callable[[StepClient], bool]
    seen: Callable[[StepClient], bool]


_CHANGES: Final = {
    "90 closing PUT": _Change(
        lambda client: client.put_blob(CONFIG), lambda client: client.put_blob(client.second_layer), _blob_is_here
    ),
    "91 manifest PUT": _Change(
        StepClient.push_both, lambda client: client.put_manifest("v1", client.second), _tag_has_moved
    ),
    "92 DELETE of a tag": _Change(StepClient.push_both, lambda client: client.delete("v1"), _tag_is_gone),
    "92 DELETE of a manifest": _Change(
        StepClient.push_both, lambda client: client.delete(sha256(client.first)), _manifest_is_gone
    ),
}

#: More steps than any of these changes takes.
_MANY: Final = 200


def _judge(change: _Change, client: StepClient, acknowledged: bool, number: int) -> bool:
    """Whether the change is seen: whole or not at all, whole if it was acknowledged, and whole once it is repeated."""
    seen = change.seen(client)
    assert seen or not acknowledged, f"acknowledged and lost, before step {number}"
    if not seen:
        assert change.make(client)
        assert change.seen(client)
    return seen


@pytest.mark.parametrize("name", _CHANGES)
def test_90_91_92_killed_before_each_step(tmp_path: Path, tally: Tally, name: str) -> None:
    """Rows 90 to 92: the worker is killed before each step of one change; the next one shows the change or does not."""
    change, steps = _CHANGES[name], Steps(tmp_path / "steps")
    seen = []
    config = write_config(tmp_path, {}, workers=1, more=_GRACE)
    with ForkedWorkers(config, steps=steps) as workers:
        for number in range(1, _MANY):
            client = StepClient(workers.port, number)
            workers.start()
            change.prepare(client)
            steps.kill_before(number)
            acknowledged = change.make(client)
            hit = steps.hit
            assert hit or acknowledged
            workers.kill()
            workers.start()
            seen.append(_judge(change, client, acknowledged, number))
            workers.kill()
            if not hit:
                break
    tally(steps=len(seen) - 1)
    assert seen[0] is False
    assert seen[-1] is True


@pytest.mark.skipif(refusal() is not None, reason=f"power cannot be cut here: {refusal()}")
@pytest.mark.parametrize("name", _CHANGES)
def test_90_91_92_power_cut_before_each_step(tmp_path: Path, tally: Tally, name: str) -> None:
    """Rows 90 to 92: the power is cut before each step of one change, and at last right after its answer."""
    change, steps = _CHANGES[name], Steps(tmp_path / "steps")
    seen = []
    with Ext4(tmp_path) as disk:
        config = tmp_path / "mirror.toml"
        config.write_text(write_config(disk.mount_point, {}, workers=1, more=_GRACE).read_text())
        with ForkedWorkers(config, steps=steps) as workers:
            for number in range(1, _MANY):
                client = StepClient(workers.port, number)
                workers.start(boot=2 * number)
                change.prepare(client)
                steps.cut_before(number)
                acknowledged = change.make(client)
                hit = steps.hit
                if not hit:
                    disk.cut()
                workers.kill()
                disk.remount()
                assert not _wrong_files(disk.mount_point / "store")
                workers.start(boot=2 * number + 1)
                seen.append(_judge(change, client, acknowledged, number))
                workers.kill()
                if not hit:
                    break
    tally(steps=len(seen) - 1)
    assert seen[0] is False
    assert seen[-1] is True
