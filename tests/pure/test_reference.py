"""Names of repositories and registries, tags and references."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.errors import DigestInvalid, NameInvalid, TagInvalid
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo, check_name, check_registry, check_tag, parse_reference

#: As the specification writes it (distribution-spec, "Pulling manifests").
_NAME = re.compile(r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")


@given(st.text("ab0._-/", max_size=12) | st.from_regex(_NAME, fullmatch=True))
def test_names_are_those_of_the_specification(name: str) -> None:
    """Accepted is what the specification's own expression accepts, up to 255 characters."""
    if _NAME.fullmatch(name) and len(name) <= 255:
        assert check_name(name) == name
    else:
        with pytest.raises(NameInvalid):
            check_name(name)


@given(st.text(max_size=140) | st.from_regex(_TAG, fullmatch=True))
def test_tags_are_those_of_the_specification(tag: str) -> None:
    """Likewise for tags."""
    if re.compile(_TAG.pattern, re.ASCII).fullmatch(tag):
        assert check_tag(tag) == tag
    else:
        with pytest.raises(TagInvalid):
            check_tag(tag)


@pytest.mark.parametrize(
    "name",
    ["", "/", "a/", "/a", "a//b", "A", "a..b", "a___b", ".a", "a-", "a b", "a\n", "../a", "a/..", "é", "a" * 256],
)
def test_odd_names(name: str) -> None:
    """Nothing that could leave a folder or be written in two ways."""
    with pytest.raises(NameInvalid):
        check_name(name)


@pytest.mark.parametrize("host", ["docker.io", "localhost", "localhost:5000", "127.0.0.1:80", "a-b.c", "k8s.gcr.io"])
def test_registries(host: str) -> None:
    """Hosts as clients say them."""
    assert check_registry(host) == host


@pytest.mark.parametrize(
    "host",
    [
        *("", ".", "..", "a..b", "-a", "a-", "A.b", "a/b", "a@b", "http://a", "a:", "a:x", "a:123456", "a b", "[::1]"),
        *("é.de", "a\n", "%61", "a" * 256, "*.a"),
    ],
)
def test_odd_registries(host: str) -> None:
    """What is no host and port is refused: it becomes a folder and part of a URL."""
    with pytest.raises(NameInvalid):
        check_registry(host)


def test_references() -> None:
    """A colon makes a digest: what then is none is no tag either."""
    digest = Digest.of(b"")
    assert parse_reference(str(digest)) == digest
    assert parse_reference("v1.0_x-Y") == "v1.0_x-Y"
    with pytest.raises(DigestInvalid):
        parse_reference("sha256:abc")
    for text in ("", ".a", "-a", "a/b", "..", "a" * 129):
        with pytest.raises(TagInvalid):
            parse_reference(text)


def test_repositories_say_their_registry() -> None:
    """Equal names on two registries are two repositories."""
    assert Repo("docker.io", "library/app") != Repo("ghcr.io", "library/app")
    assert str(Repo("docker.io", "library/app")) == "docker.io/library/app"
