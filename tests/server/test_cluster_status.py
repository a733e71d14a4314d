"""What `mirror status` says of the other replicas."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from mirror import __version__
from mirror.cli.status import describe_cluster
from mirror.server.admin.worker_status import WorkerStatus
from mirror.store.local.blobs import LocalStore
from mirror.store.local.layout import Layout
from mirror.store.local.locks import FileLocks
from mirror.store.local.status_board import StatusBoard
from tests.support.command import mirror

_A, _B, _C = (f"http://10.0.0.{number}:5001" for number in (1, 2, 3))
_SINCE: Final = "2026-01-02T03:04:05Z"


def _member(address: str, **more: Any) -> dict[str, Any]:
    known = {"address": address, "up": True, "since": _SINCE, "reason": None, "version": __version__}
    return {**known, "first_byte": None, **more}


def _cluster(*members: dict[str, Any]) -> dict[str, Any]:
    return {"name": "mirror", "address": _A, "members": list(members), "leases": None, "clock_offset": None}


def test_every_replica_is_there_with_its_address() -> None:
    """Also those that are well: lists of members are compared by them."""
    down = _member(_C, up=False, reason="Connection refused", version=None)
    assert describe_cluster(_cluster(_member(_B), down), answers=True) == [
        f"cluster:   mirror, this replica is {_A}; 1 of 2 other replicas answering",
        f"           {_B}: answers since {_SINCE}",
        f"           {_C}: down since {_SINCE}: Connection refused",
    ]


def test_a_replica_that_was_not_asked_is_neither_up_nor_down() -> None:
    unknown = _member(_B, up=False, since=None, version=None)
    assert describe_cluster(_cluster(unknown), answers=True) == [
        f"cluster:   mirror, this replica is {_A}; 0 of 1 other replica answering",
        f"           {_B}: not asked yet",
    ]


def test_a_mirror_that_does_not_answer_knows_nothing_of_the_others() -> None:
    assert describe_cluster(_cluster(), answers=False) == [
        f"cluster:   mirror, this replica is {_A}; the others are not asked, because no mirror answers"
    ]


def test_another_version_is_named() -> None:
    lines = describe_cluster(_cluster(_member(_B, version="0.0.1")), answers=True)
    assert lines[-1] == "           other versions run there: 0.0.1"


def test_a_mirror_that_ends_is_not_called_stopped(tmp_path: Path) -> None:
    """It has closed its listeners, and goes on with what it has begun: its workers still publish what they do."""
    file = tmp_path / "mirror.toml"
    file.write_text(f'[store]\nroot = "{tmp_path}/store"\n')
    layout = LocalStore(Layout(tmp_path / "store")).layout
    assert "not running" in mirror("status", "--config", file).out
    board = StatusBoard(layout, FileLocks(layout))
    board.open()
    try:
        board.publish(asdict(WorkerStatus(4711, time.time(), (), ())))
        said = mirror("status", "--config", file)
        assert said.status == 0, said
        assert "1 worker, up " in said.out
        assert "without an answer" in said.out
        [worker] = mirror("status", "--json", "--config", file).json["workers"]
        assert worker["worker"] == 4711
    finally:
        board.close()
