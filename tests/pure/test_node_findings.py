"""What the doctor makes of what it sees: limits between good, to be watched, and wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from mirror.nodes.findings import (
    Level,
    judge_backup,
    judge_budget,
    judge_certificate_age,
    judge_client,
    judge_clock,
    judge_files,
    judge_inodes,
    judge_owners,
    judge_quota,
    judge_room,
    worst,
)
from mirror.nodes.plan import Asked, MirrorUrl
from mirror.values.sizes import Capacity

_DAY = 86400.0
_MIRROR = MirrorUrl.parse("http://mirror:5000")
_OK, _WARNING, _PROBLEM = Level.OK, Level.WARNING, Level.PROBLEM


@pytest.mark.parametrize(
    ("begins", "ends", "level", "text"),
    [
        (0.0, 100 * _DAY, _OK, "another 90 days"),
        (0.0, 20 * _DAY, _WARNING, "another 10 days"),
        (0.0, 10.5 * _DAY, _WARNING, "another 12 hours"),
        (0.0, 10 * _DAY, _PROBLEM, "expired"),
        (0.0, 7 * _DAY, _PROBLEM, "expired 3 days ago"),
        (11 * _DAY, 100 * _DAY, _PROBLEM, "not valid yet"),
    ],
)
def test_certificates(begins: float, ends: float, level: Level, text: str) -> None:
    """On day 10."""
    found = judge_certificate_age("mirror", begins, ends, 10 * _DAY)
    assert (found.level, text in found.text) == (level, True)
    assert bool(found.advice) == (level is not _OK)


@pytest.mark.parametrize(
    ("skew", "level", "text"),
    [
        (0.4, _OK, "same as the mirror's"),
        (-3.0, _OK, "3 s behind"),
        (5.0, _WARNING, "5 s ahead"),
        (-60.0, _PROBLEM, "60 s behind"),
    ],
)
def test_clocks(skew: float, level: Level, text: str) -> None:
    """A second or two is the header's own precision."""
    found = judge_clock(skew)
    assert (found.level, text in found.text) == (level, True)


@pytest.mark.parametrize(
    ("endpoints", "trouble", "demanded", "level"),
    [
        (("http://mirror:5000", "https://other"), (), True, _OK),
        (("http://MIRROR:5000/",), (), True, _OK),
        (("mirror:5000/docker.io",), (), True, _OK),
        (("https://mirror:5000",), (), False, _PROBLEM),
        (("http://mirror:50001",), (), False, _PROBLEM),
        (("https://other", "http://mirror:5000"), (), True, _WARNING),
        (("http://mirror:5000",), ("config_path is not set",), False, _PROBLEM),
        ((), (), True, _PROBLEM),
        ((), (), False, _WARNING),
    ],
)
def test_clients(endpoints: tuple[str, ...], trouble: tuple[str, ...], demanded: bool, level: Level) -> None:
    """The mirror has to be asked first; a client that nobody named may not be meant at all."""
    found = judge_client("docker", Asked(endpoints, "file", trouble), "docker.io", _MIRROR, demanded=demanded)
    assert found.level is level


@pytest.mark.parametrize(
    ("free", "held", "level"),
    [(900, 0, _OK), (700, 0, _WARNING), (700, 100, _OK), (0, 800, _PROBLEM)],
)
def test_room(free: int, held: int, level: Level) -> None:
    """Of 1000 GB, 80 % of which may be used: what is stored already counts as room."""
    giga = 10**9
    assert judge_room(1000 * giga, free * giga, held * giga, Capacity(percent=80.0)).level is level


@pytest.mark.parametrize(
    ("used", "quota", "level", "text"),
    [
        (890, 1000, Level.OK, "890 B of 1 kB"),
        (900, 1000, Level.WARNING, "900 B of 1 kB"),
        (1000, 1000, Level.PROBLEM, "1 kB of 1 kB"),
        (1000, None, Level.OK, "1 kB"),
        (0, 0, Level.PROBLEM, "0 B of 0 B"),
        (None, 1000, Level.WARNING, "not known yet how full it is"),
    ],
)
def test_quotas(used: int | None, quota: int | None, level: Level, text: str) -> None:
    """Nearly full is a warning, full a problem; what is not known is not called good."""
    found = judge_quota("corp/team/**", used, quota)
    assert (found.what, found.level, found.text) == ("hosted corp/team/**", level, text)


@pytest.mark.parametrize(
    ("began_at", "level", "text"),
    [
        (None, Level.WARNING, "never backed up"),
        (1000.0, Level.OK, "0 hours ago"),
        (1000.0 + 3600, Level.OK, "0 hours ago"),
        (1000.0 - 47 * 3600, Level.OK, "47 hours ago"),
        (1000.0 - 72 * 3600, Level.WARNING, "3 days ago"),
    ],
)
def test_backups(began_at: float | None, level: Level, text: str) -> None:
    """None, and one of more than two days ago, is a warning; a clock that went back is none."""
    found = judge_backup(began_at, 1000.0)
    assert (found.level, text in found.text) == (level, True)
    assert bool(found.advice) == (level is Level.WARNING)


@pytest.mark.parametrize(("remaining", "level"), [(100, _OK), (25, _OK), (24, _WARNING), (1, _WARNING), (0, _PROBLEM)])
def test_budgets(remaining: int, level: Level) -> None:
    """Of 100 pulls within six hours."""
    found = judge_budget("docker.io", 100, remaining, 21600.0)
    assert (found.what, found.level) == ("budget docker.io", level)
    assert found.text == f"{remaining} of 100 pulls left within 6 hours"
    assert bool(found.advice) == (level is not _OK)


def test_inodes_and_files() -> None:
    """File systems without a number of inodes have enough."""
    assert [judge_inodes(*each).level for each in ((0, 0), (100, 50), (100, 4), (100, 0))] == [
        _OK,
        _OK,
        _WARNING,
        _PROBLEM,
    ]
    assert [judge_files(hard).level for hard in (1024, 65536)] == [_WARNING, _OK]


def test_files_of_another_user() -> None:
    """What root has left in a store, its mirror cannot read: said with a name and the way out."""
    root = Path("/var/lib/mirror")
    assert judge_owners(root, 7, {"/var/lib/mirror/blobs": 7}) is None
    found = judge_owners(root, 7, {"/s/b": 0, "/s/blobs": 7, "/s/a": 0})
    assert found
    assert (found.level, found.text) == (_PROBLEM, "/s/a (and 1 more) belongs to user 0, the store to user 7")
    assert found.advice.endswith("chown -R 7 /var/lib/mirror")


def test_the_worst_counts() -> None:
    """Nothing found is nothing wrong."""
    few, many = judge_files(1024), judge_files(65536)
    assert worst([]) is _OK
    assert worst([many, few, many]) is _WARNING
