"""What `mirror status` says of the other replicas."""

from __future__ import annotations

from typing import Any, Final

from mirror import __version__
from mirror.cli.status import describe_cluster

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
    assert describe_cluster(_cluster(_member(_B), down), runs=True) == [
        f"cluster:   mirror, this replica is {_A}; 1 of 2 other replicas answering",
        f"           {_B}: answers since {_SINCE}",
        f"           {_C}: down since {_SINCE}: Connection refused",
    ]


def test_a_replica_that_was_not_asked_is_neither_up_nor_down() -> None:
    unknown = _member(_B, up=False, since=None, version=None)
    assert describe_cluster(_cluster(unknown), runs=True) == [
        f"cluster:   mirror, this replica is {_A}; 0 of 1 other replica answering",
        f"           {_B}: not asked yet",
    ]


def test_a_mirror_that_does_not_run_knows_nothing_of_the_others() -> None:
    assert describe_cluster(_cluster(), runs=False) == [
        f"cluster:   mirror, this replica is {_A}; the others are not asked, because no mirror runs"
    ]


def test_another_version_is_named() -> None:
    lines = describe_cluster(_cluster(_member(_B, version="0.0.1")), runs=True)
    assert lines[-1] == "           other versions run there: 0.0.1"
