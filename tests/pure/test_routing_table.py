"""Which registry a request means, as a pure table."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.errors import NameInvalid, NameUnknown, RequestError
from mirror.policy.routing import Registry, RoutingTable, compile_pattern

_TABLE = RoutingTable.build(
    [
        Registry("docker.io", ("index.docker.io", "registry-1.docker.io"), library=True),
        Registry("ghcr.io", hosts=("ghcr.mirror.test", "With-Port.test:5000")),
        Registry("localhost:5001"),
        Registry("gcr.io"),
        Registry("*.gcr.io"),
        Registry("*.special.gcr.io", hosts=("wild.test",)),
        Registry("*.pkg.dev"),
    ],
    "docker.io",
)


@pytest.mark.parametrize(
    ("path", "host", "ns", "wanted"),
    [
        # by default
        ("app", None, None, "docker.io/library/app"),
        ("library/app", None, None, "docker.io/library/app"),
        ("owner/app", "whatever.test", None, "docker.io/owner/app"),
        # by ns, whatever its case
        ("app", None, "docker.io", "docker.io/library/app"),
        ("owner/app", None, "GHCR.io", "ghcr.io/owner/app"),
        ("app", None, "ghcr.io", "ghcr.io/app"),
        ("app", None, "index.docker.io", "docker.io/library/app"),
        ("app", None, "registry-1.docker.io", "docker.io/library/app"),
        ("app", None, "localhost:5001", "localhost:5001/app"),
        # by path
        ("ghcr.io/owner/app", None, None, "ghcr.io/owner/app"),
        ("docker.io/app", None, None, "docker.io/library/app"),
        ("index.docker.io/app", None, None, "docker.io/library/app"),
        ("localhost:5001/app", None, None, "localhost:5001/app"),
        # by path and ns: it is taken off only if it names the same registry
        ("ghcr.io/owner/app", None, "ghcr.io", "ghcr.io/owner/app"),
        ("registry-1.docker.io/app", None, "docker.io", "docker.io/library/app"),
        ("ghcr.io/app", None, "docker.io", "docker.io/ghcr.io/app"),
        # by host, before everything else
        ("owner/app", "ghcr.mirror.test", None, "ghcr.io/owner/app"),
        ("owner/app", "GHCR.mirror.test:8080", "docker.io", "ghcr.io/owner/app"),
        ("ghcr.io/owner/app", "ghcr.mirror.test", None, "ghcr.io/owner/app"),
        ("owner/app", "with-port.test:5000", None, "ghcr.io/owner/app"),
        ("owner/app", "with-port.test:5001", None, "docker.io/owner/app"),
        ("owner/app", "ghcr.mirror.test.", "docker.io", "ghcr.io/owner/app"),
        ("owner/app", "ghcr.mirror.test.:443", "docker.io", "ghcr.io/owner/app"),
        ("owner/app", "ghcr.mirror.test:", "docker.io", "ghcr.io/owner/app"),
        ("owner/app", "with-port.test.:5000", None, "ghcr.io/owner/app"),
        # wildcards: the longest, and each host its own name
        ("a/b", None, "gcr.io", "gcr.io/a/b"),
        ("a/b", None, "eu.gcr.io", "eu.gcr.io/a/b"),
        ("eu.gcr.io/a/b", None, None, "eu.gcr.io/a/b"),
        ("europe-west1-docker.pkg.dev/a/b/c", None, None, "europe-west1-docker.pkg.dev/a/b/c"),
        ("a/b", None, "x.special.gcr.io", "x.special.gcr.io/a/b"),
        # what only looks like a registry is a name on the default one
        ("quay.io/owner/app", None, None, "docker.io/quay.io/owner/app"),
        ("pkg.dev/a", None, None, "docker.io/pkg.dev/a"),
        ("ghcr.io", None, None, "docker.io/library/ghcr.io"),
    ],
)
def test_routes(path: str, host: str | None, ns: str | None, wanted: str) -> None:
    """Host, then ns, then path, then the default."""
    assert str(_TABLE.route(path, host=host, ns=ns)) == wanted


@pytest.mark.parametrize(
    "ns", ["quay.io", "xgcr.io", "pkg.dev", ".pkg.dev", "*.pkg.dev", "169.254.169.254", "localhost"]
)
def test_70_unknown_registries(ns: str) -> None:
    """Row 70: a registry that is not configured is an error, never guessed, never the default."""
    with pytest.raises((NameUnknown, NameInvalid)):
        _TABLE.route("owner/app", ns=ns)


@pytest.mark.parametrize("ns", ["a\r\nX-Evil: 1", "a\x00", "\x7f", "quay.io/x", "*"])
def test_31_a_namespace_that_no_header_may_repeat(ns: str) -> None:
    """Row 31: refused also where `Host` decides."""
    with pytest.raises(NameInvalid):
        _TABLE.route("owner/app", host="ghcr.mirror.test", ns=ns)


@pytest.mark.parametrize("path", ["", "/", "a//b", "../a", "A", "ghcr.io/", "ghcr.io/A", "docker.io/../a", "a" * 300])
def test_31_odd_names(path: str) -> None:
    """Row 31: the name is checked after routing, whatever was taken off."""
    with pytest.raises(NameInvalid):
        _TABLE.route(path)


@pytest.mark.parametrize(
    ("path", "host", "ns", "wanted"),
    [
        ("corp/team/app", None, None, "corp/team/app"),
        ("corp/app", None, None, "corp/app"),
        ("company/app", None, None, "corp/app"),
        ("Corp/app", None, None, "corp/app"),
        ("team/app", "registry.corp.test", None, "corp/team/app"),
        ("corp/app", "registry.corp.test:443", None, "corp/app"),
        ("team/app", None, "corp", "corp/team/app"),
        # it hides only names that begin with its own, and none of another registry
        ("corp", None, None, "docker.io/library/corp"),
        ("corporation/app", None, None, "docker.io/corporation/app"),
        ("ghcr.io/corp/app", None, None, "ghcr.io/corp/app"),
        ("corp/app", None, "ghcr.io", "ghcr.io/corp/app"),
        ("ghcr.io/app", None, "corp", "corp/ghcr.io/app"),
    ],
)
def test_a_hosted_registry_may_have_any_name(path: str, host: str | None, ns: str | None, wanted: str) -> None:
    """Host, ns and path lead to it as to others; its name need not look like a host."""
    table = RoutingTable.build(
        [
            Registry("docker.io", library=True),
            Registry("ghcr.io"),
            Registry("corp", ("company",), ("registry.corp.test",), hosted=True),
        ],
        "docker.io",
    )
    assert str(table.route(path, host=host, ns=ns)) == wanted


def test_a_hosted_registry_may_be_the_default() -> None:
    """Then no name is lengthened by `library`."""
    table = RoutingTable.build([Registry("docker.io", library=True), Registry("corp", hosted=True)], "corp")
    assert str(table.route("app")) == "corp/app"
    assert str(table.route("team/app")) == "corp/team/app"
    assert table.hosts_registry("corp")
    assert not table.hosts_registry("docker.io")
    assert not table.hosts_registry("absent.example")


def test_without_a_default() -> None:
    """A request that names no registry is refused."""
    table = RoutingTable.build([Registry("ghcr.io")], None)
    assert str(table.route("ghcr.io/a/b")) == "ghcr.io/a/b"
    with pytest.raises(NameUnknown):
        table.route("a/b")


@given(
    st.lists(st.sampled_from(["ghcr.io", "docker.io", "eu.gcr.io", "evil.example", "a", "b", ".."]), max_size=4),
    st.none() | st.sampled_from(["ghcr.mirror.test", "evil.example", "ghcr.io", "docker.io:80", "::"]),
    st.none() | st.sampled_from(["ghcr.io", "docker.io", "eu.gcr.io", "evil.example", "a/b", "http://ghcr.io"]),
)
def test_70_only_configured_registries(parts: list[str], host: str | None, ns: str | None) -> None:
    """Row 70: whatever is asked, the answer is an error or a registry that the table knows."""
    try:
        repo = _TABLE.route("/".join(parts), host=host, ns=ns)
    except RequestError:
        return
    assert repo.registry in ("ghcr.io", "docker.io", "eu.gcr.io")


def test_the_first_of_two_entries_counts() -> None:
    """Of two entries for one name the first wins, aliases included."""
    table = RoutingTable.build([Registry("a.b", ("c.d",)), Registry("c.d"), Registry("a.b", library=True)], "c.d")
    assert str(table.route("x")) == "a.b/x"


@pytest.mark.parametrize(
    ("pattern", "fits", "fits_not"),
    [
        ("docker.io/library/*", ["docker.io/library/app"], ["docker.io/library/a/b", "dockerxio/library/app"]),
        ("ghcr.io/**", ["ghcr.io/a", "ghcr.io/a/b/c"], ["xghcr.io/a", "ghcr.io"]),
        ("**/app", ["docker.io/app", "a/b/app"], ["a/apps"]),
        ("*/library/ap?", ["docker.io/library/app"], ["docker.io/library/ap", "docker.io/library/ap/"]),
        ("a.b/c+d", ["a.b/c+d"], ["a.b/ccd"]),
        ("**", ["a", "a/b"], []),
    ],
)
def test_patterns(pattern: str, fits: list[str], fits_not: list[str]) -> None:
    """`*` within one part, `**` over any, `?` one character; all else is literal."""
    compiled = compile_pattern(pattern)
    assert all(compiled.fullmatch(text) for text in fits)
    assert not any(compiled.fullmatch(text) for text in fits_not)


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("docker.io", "docker.io"),
        ("index.docker.io", "docker.io"),
        ("made-up.pkg.dev", "*.pkg.dev"),
        ("a.special.gcr.io", "*.special.gcr.io"),
        ("quay.io", ""),
        ("", ""),
    ],
)
def test_labels_are_those_of_the_configuration(name: str, label: str) -> None:
    """However many names clients make up, metrics have one label for each entry."""
    assert _TABLE.label(name) == label
