"""Which tags a rule means."""

from __future__ import annotations

import pytest

from mirror.values.tagsets import TagSet, TagVersion, choose_tags, read_version

_PYTHON = [
    "latest",
    "3",
    "3.9",
    "3.10",
    "3.11",
    "3.11.4",
    "3.11.4-slim",
    "3.12.0rc2",
    "3.12.0rc10",
    "3.12.0",
    "bookworm",
]


@pytest.mark.parametrize(
    ("tag", "version"),
    [
        ("1.2.3", TagVersion((1, 2, 3))),
        ("v1.2.3", TagVersion((1, 2, 3))),
        ("V1", TagVersion((1,))),
        ("1.2", TagVersion((1, 2))),
        ("24.04", TagVersion((24, 4))),
        ("1.2.3-rc1", TagVersion((1, 2, 3), "rc1")),
        ("1.2-alpine3.20", TagVersion((1, 2), "alpine3.20")),
        ("3.14.0rc1", TagVersion((3, 14, 0), "rc1")),
        ("17beta2-bookworm", TagVersion((17,), "beta2-bookworm")),
        ("1.2.3_amd64", TagVersion((1, 2, 3), "", "amd64")),
        ("1.2.3-rc.1_b5", TagVersion((1, 2, 3), "rc.1", "b5")),
        ("1.2.3.4", TagVersion((1, 2, 3, 4))),
        ("2024-01-05", TagVersion((2024,), "01-05")),
        ("latest", None),
        ("bookworm-1", None),
        ("1a2b3c", None),
        ("1..2", None),
        ("1.2.", None),
        ("v", None),
        ("-1", None),
        ("9" * 128, None),
        ("1.1.1.1.1.1.1.1.1", None),
        ("١.٢", None),
    ],
)
def test_tags_as_versions(tag: str, version: TagVersion | None) -> None:
    """Registries know no grammar of versions, so it is a lenient one."""
    assert read_version(tag) == version


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        (TagSet(glob="3.1*"), ["3.12.0", "3.12.0rc10", "3.12.0rc2", "3.11.4", "3.11.4-slim", "3.11", "3.10"]),
        (TagSet(glob="3.1*", newest=2), ["3.12.0", "3.12.0rc10"]),
        (TagSet(glob="[bl]*"), ["latest", "bookworm"]),
        (TagSet(glob="nothing*"), []),
        (TagSet(regex=r"3\.\d+"), ["3.11", "3.10", "3.9"]),
        (TagSet(regex=r"3\.\d+", newest=1), ["3.11"]),
        (TagSet(regex="3|latest"), ["3", "latest"]),
        (TagSet(semver=">=3.10 <3.12"), ["3.11.4", "3.11", "3.10"]),
        (TagSet(semver=">= 3.10, < 3.12"), ["3.11.4", "3.11", "3.10"]),
        (TagSet(semver="^3.11"), ["3.12.0", "3.11.4", "3.11"]),
        (TagSet(semver="3.9 || 3.10.x"), ["3.10", "3.9"]),
        (TagSet(semver="~3.11", prereleases=True), ["3.11.4", "3.11.4-slim", "3.11"]),
        (TagSet(semver=">=3.12", prereleases=True, newest=2), ["3.12.0", "3.12.0rc10"]),
        (TagSet(semver="<3.12", prereleases=True, newest=1), ["3.11.4"]),
        (TagSet(semver="*", newest=1), ["3.12.0"]),
        (TagSet(newest=3), ["3.12.0", "3.12.0rc10", "3.12.0rc2"]),
    ],
)
def test_which_tags(wanted: TagSet, chosen: list[str]) -> None:
    """The newest first; whatever the order in which they come, and however often."""
    assert choose_tags(_PYTHON, wanted) == chosen
    assert choose_tags([*reversed(_PYTHON), *_PYTHON], wanted) == chosen


@pytest.mark.parametrize(
    "oldest_first",
    [
        ["1.9", "1.10"],
        ["1.2.3-rc2", "1.2.3-rc10", "1.2.3"],
        ["1.2.3-alpha", "1.2.3-beta"],
        ["1.2.3.9", "1.2.3.10", "1.2.4"],
        ["1.0", "v1.0.1"],
        ["latest", "0.1"],
        ["build-9", "build-10"],
        ["nightly-20240930", "nightly-20241001"],
        ["1.2.3", "1.2.3_b2", "1.2.3_b10"],
    ],
)
def test_what_is_newer(oldest_first: list[str]) -> None:
    """By version order; names, which are older than any version, with the numbers in them by value."""
    assert choose_tags(oldest_first, TagSet()) == oldest_first[::-1]


def test_all_tags_without_a_pattern() -> None:
    """A rule that says nothing means everything."""
    assert set(choose_tags(_PYTHON, TagSet())) == set(_PYTHON)


def test_a_range_may_name_a_prerelease() -> None:
    """As in npm: then those of that very version are meant too, and of no other."""
    tags = ["1.2.0-rc1", "1.2.0-rc3", "1.2.0", "1.3.0-rc1"]
    assert choose_tags(tags, TagSet(semver=">=1.2.0-rc2")) == ["1.2.0", "1.2.0-rc3"]


def test_a_prerelease_that_semver_does_not_know_is_none() -> None:
    """Tags hold what versions may not."""
    assert choose_tags(["1.2.0-a..b", "1.2.0-01", "1.2.1"], TagSet(semver=">=1")) == ["1.2.1"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"glob": "a", "regex": "b"}, "exclude each other"),
        ({"semver": "1", "regex": "b"}, "exclude each other"),
        ({"glob": "a", "prereleases": True}, "belongs to tags_semver"),
        ({"glob": ""}, "write \\*"),
        ({"newest": 0}, "at least 1"),
        ({"regex": "(a"}, "not a regular expression"),
        ({"regex": "a{99999999999}"}, "not a regular expression"),
        ({"semver": "latest"}, "not a version range"),
        ({"semver": " "}, "not a version range"),
    ],
)
def test_mistakes(arguments: dict[str, object], said: str) -> None:
    """Each is named."""
    with pytest.raises(ValueError, match=said):
        TagSet(**arguments)  # type: ignore[arg-type]  # as out of a configuration
