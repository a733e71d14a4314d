"""Which tags should not move."""

from __future__ import annotations

import pytest

from mirror.values.versions import looks_like_version


@pytest.mark.parametrize(
    "tag",
    [
        "1.2.3",
        "v1.2",
        "V1.2.3",
        "1.2",
        "10.20.30.40",
        "3.12.1-slim",
        "3.12-slim-bookworm",
        "7.2.4-alpine3.19",
        "2.0.0-rc.1",
        "1.0.0-beta",
        "1.2.3_build.5",
        "1.2.3-0ubuntu1",
        "2024.05.01",
        "2024.05",
        "2024-05-01",
        "20240501",
        "20240501-1",
        "20240501.2",
        "RELEASE.2024-05-10T01-41-38Z",
        "release-1.30",
        "version-2.4.1",
        "r1.5",
        "1.2.3-xfce",
        "1.2.3-mainline2",
    ],
)
def test_versions(tag: str) -> None:
    """At least two numbers, or a date, with whatever follows."""
    assert looks_like_version(tag)


@pytest.mark.parametrize(
    "tag",
    [
        "latest",
        "stable",
        "main",
        "edge",
        "nightly",
        "master",
        "",
        "3",
        "v1",
        "v1-slim",
        "123456789",
        "19991399",
        "202405",
        "slim",
        "alpine3.19",
        "bookworm-20240501",
        "stable-1.2",
        "1.2.x",
        "1.2-nightly",
        "1.2.3-SNAPSHOT",
        "3.13-dev",
        "20240501-nightly",
        "1.2-edge.5",
        "sha-1a2b3c4",
        "pr-12",
        "x1.2",
        "sha256-" + "1" * 64 + ".sig",
    ],
)
def test_others(tag: str) -> None:
    """Words, lines of releases, and what says itself that it moves."""
    assert not looks_like_version(tag)
