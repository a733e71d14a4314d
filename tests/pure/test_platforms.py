"""Which platforms of an image are wanted."""

from __future__ import annotations

from typing import Any

import pytest

from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_MANIFEST, Descriptor
from mirror.values.platforms import Platform, parse_platform, parse_platforms, wanted_children


def _child(name: str, **platform: Any) -> Descriptor:
    return Descriptor(OCI_MANIFEST, Digest.of(name.encode()), 1, platform=platform)


_CHILDREN = [
    _child("amd64", os="linux", architecture="amd64"),
    _child("arm64", os="linux", architecture="arm64", variant="v8"),
    _child("armv6", os="linux", architecture="arm", variant="v6"),
    _child("armv7", os="linux", architecture="arm", variant="v7"),
    _child("windows", os="windows", architecture="amd64"),
    _child("attestation", os="unknown", architecture="unknown"),
    _child("anything"),
]


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ("linux/amd64", ["amd64", "anything"]),
        ("linux/x86_64", ["amd64", "anything"]),
        ("linux/arm64", ["arm64", "anything"]),
        ("linux/aarch64/v8", ["arm64", "anything"]),
        ("linux/arm", ["armv7", "anything"]),
        ("linux/arm/v6", ["armv6", "anything"]),
        ("windows/amd64,linux/amd64", ["amd64", "windows", "anything"]),
        ("linux/s390x", ["anything"]),
        ("", ["amd64", "arm64", "armv6", "armv7", "windows", "attestation", "anything"]),
    ],
)
def test_children_of_a_choice(wanted: str, names: list[str]) -> None:
    """By os, architecture and variant, whose usual one need not be said; no choice means everything."""
    found = wanted_children(_CHILDREN, parse_platforms([wanted]))
    assert [child.digest for child in found] == [Digest.of(name.encode()) for name in names]


@pytest.mark.parametrize("text", ["linux", "linux/", "/amd64", "linux/arm/v7/x", "linux/a md64", "linux/é"])
def test_what_is_no_platform(text: str) -> None:
    """It is named in the error."""
    with pytest.raises(ValueError, match="not a platform"):
        parse_platform(text)


def test_a_platform_is_written_as_it_is_read() -> None:
    """With its variant only where it has one; twice the same counts once."""
    assert str(parse_platform("Linux/ARM/v7")) == "linux/arm/v7"
    assert parse_platforms(["linux/amd64", "linux/amd64, linux/arm64"]) == (
        Platform("linux", "amd64"),
        Platform("linux", "arm64"),
    )
