"""One change of a repository with a fault before each of its steps: the worker is killed, or the power is cut.

    kill_before_each_step(folder, settings, CHANGES["manifest PUT"])

Each step gets a repository of its own (`step_client.py`). In the last round nothing breaks before the answer; then
the worker is killed, or the power cut.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from mirror.oci.digest import Digest
from tests.support.breaking_steps import Steps
from tests.support.ext4 import Ext4
from tests.support.forked_workers import ForkedWorkers
from tests.support.images import sha256
from tests.support.mirror_process import write_config
from tests.support.step_client import CONFIG, StepClient

#: More steps than any change takes.
_MANY: Final = 300

#: Is told whether the change is seen.
Judge: TypeAlias = Callable[[StepClient, bool], None]


@dataclass(frozen=True, slots=True)
class Change:
    """One change of a repository. `seen` fails if what a client sees is neither the old nor the new state."""

    prepare: Callable[[StepClient], object]
    make: Callable[[StepClient], bool]
    seen: Callable[[StepClient], bool]


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


CHANGES: Final = {
    "closing PUT": Change(
        lambda client: client.put_blob(CONFIG), lambda client: client.put_blob(client.second_layer), _blob_is_here
    ),
    "manifest PUT": Change(
        StepClient.push_both, lambda client: client.put_manifest("v1", client.second), _tag_has_moved
    ),
    "DELETE of a tag": Change(StepClient.push_both, lambda client: client.delete("v1"), _tag_is_gone),
    "DELETE of a manifest": Change(
        StepClient.push_both, lambda client: client.delete(sha256(client.first)), _manifest_is_gone
    ),
}


def wrong_files(root: Path) -> list[str]:
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


def config_on(disk: Ext4, folder: Path, more: str) -> Path:
    """The configuration of a mirror whose store is on a disk that is going to be unmounted."""
    config = folder / "mirror.toml"
    config.write_text(write_config(disk.mount_point, {}, workers=1, more=more).read_text())
    return config


def kill_before_each_step(
    folder: Path, more: str, change: Change, judge: Judge, *, settle: Callable[[Path], object] = lambda root: None
) -> int:
    """The number of steps. `settle` is given the store, once the change is prepared and once the next worker runs."""
    config, steps = write_config(folder, {}, workers=1, more=more), Steps(folder / "steps")
    with ForkedWorkers(config, steps=steps) as workers:
        count = _each_step(workers, steps, change, judge, folder / "store", settle)
        log = workers.log.read_text()
    assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:4000]
    return count


def cut_before_each_step(
    folder: Path, more: str, change: Change, judge: Judge, *, settle: Callable[[Path], object] = lambda root: None
) -> int:
    """The same with power cuts."""
    steps = Steps(folder / "steps")
    with Ext4(folder) as disk, ForkedWorkers(config_on(disk, folder, more), steps=steps) as workers:
        return _each_step(workers, steps, change, judge, disk.mount_point / "store", settle, disk)


def _each_step(
    workers: ForkedWorkers,
    steps: Steps,
    change: Change,
    judge: Judge,
    root: Path,
    settle: Callable[[Path], object],
    disk: Ext4 | None = None,
) -> int:
    seen = []
    for number in range(1, _MANY):
        client = StepClient(workers.port, number)
        workers.start(boot=2 * number if disk else 0)
        change.prepare(client)
        settle(root)
        if disk:
            steps.cut_before(number)
        else:
            steps.kill_before(number)
        acknowledged = change.make(client)
        hit = steps.hit
        assert hit or acknowledged
        if disk and not hit:
            disk.cut()
        workers.kill()
        if disk:
            disk.remount()
            assert not wrong_files(root)
        workers.start(boot=2 * number + 1 if disk else 0)
        settle(root)
        seen.append(change.seen(client))
        assert seen[-1] or not acknowledged, f"acknowledged and lost, before step {number}"
        judge(client, seen[-1])
        workers.kill()
        if not hit:
            break
    assert seen[0] is False
    assert seen[-1] is True
    return len(seen) - 1
