"""Patterns for images, written as images are."""

from __future__ import annotations

import pytest

from mirror.oci.reference import Repo
from mirror.policy.routing import Registry, RoutingTable
from mirror.policy.selection import select

_TABLE = RoutingTable.build(
    [Registry("docker.io", ("index.docker.io",), library=True), Registry("ghcr.io"), Registry("*.gcr.io")], "docker.io"
)
_ALPINE = Repo("docker.io", "library/alpine")
_APP = Repo("ghcr.io", "owner/app")


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("**", {_ALPINE, _APP}),
        ("", {_ALPINE, _APP}),
        ("alpine", {_ALPINE}),
        ("alp*", {_ALPINE}),
        ("library/*", {_ALPINE}),
        ("docker.io/**", {_ALPINE}),
        ("index.docker.io/library/alpine", {_ALPINE}),
        ("docker://ghcr.io/owner/*", {_APP}),
        ("ghcr.io/*", set()),
        ("**/app", {_APP}),
        ("*.io/**", {_ALPINE, _APP}),
        ("eu.gcr.io/**", set()),
        ("unknown.example/**", set()),
        ("app", set()),
    ],
)
def test_repositories(pattern: str, wanted: set[Repo]) -> None:
    """Short names mean the default registry; wildcards stay within a part unless doubled."""
    assert {repo for repo in (_ALPINE, _APP) if select(pattern, _TABLE).has(repo)} == wanted


def test_a_hosted_registry_is_named_like_a_host() -> None:
    """A pattern that begins with its name is about it, and not about the default registry."""
    table = RoutingTable.build([Registry("docker.io", library=True), Registry("corp", hosted=True)], "docker.io")
    ours, theirs = Repo("corp", "team/app"), Repo("docker.io", "corp/team/app")
    assert select("corp/**", table).has(ours)
    assert not select("corp/**", table).has(theirs)
    assert select("docker.io/corp/**", table).has(theirs)


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("alpine", {"3.20", "edge", None}),
        ("alpine:3.*", {"3.20"}),
        ("alpine:*", {"3.20", "edge"}),
        ("alpine:edge", {"edge"}),
    ],
)
def test_tags(pattern: str, wanted: set[str | None]) -> None:
    """With a pattern for tags, images without one are left out."""
    selection = select(pattern, _TABLE)
    assert selection.has(_ALPINE)
    assert {tag for tag in ("3.20", "edge", None) if selection.has_tag(tag)} == wanted


def test_without_a_default_registry() -> None:
    """A name is then taken as it is written."""
    table = RoutingTable.build([Registry("ghcr.io")], None)
    assert select("ghcr.io/owner/app", table).has(_APP)
    assert not select("owner/app", table).has(_APP)
