"""Which registry a request is for. A pure table: a registry that is not configured is never contacted.

The registry is found in this order:

    1. by a `Host` header that the configuration assigns to a registry
    2. by `?ns=`, which containerd sends to mirrors
    3. by a first path component that names a configured registry: /v2/ghcr.io/owner/app/… , /v2/corp/team/app/…
    4. the default registry

A first path component that names a virtual registry comes before 2: containerd sends `?ns=` with the name that it
replaces by the virtual one, which is in the path that its configuration gives it.

With 1 and 2 the path may name the registry again (`override_path` in hosts.toml does that). That part is then removed.

The name of an upstream is a host. A hosted or virtual registry may have any name, which hides the repositories of the
default registry that begin with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from mirror.errors import NameInvalid, NameUnknown
from mirror.oci.reference import Repo, check_name, check_registry

#: The folder on Docker Hub of the repositories whose names have one part.
LIBRARY: Final = "library/"
_WILD: Final = {"**": ".*", "*": "[^/]*", "?": "[^/]"}
_TOKEN: Final = re.compile(r"(\*\*|\*|\?)")


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Compile a pattern of `registry/name`: `*` matches within one component, `**` anything, `?` one character."""
    return re.compile("".join(_WILD.get(token) or re.escape(token) for token in _TOKEN.split(pattern)))


def can_match_below(pattern: str, beginning: str) -> bool:
    """True if a pattern, as in `compile_pattern`, can match a text that begins like this and is longer.

    With `ghcr.io/` as the beginning: whether the pattern can match a repository of that registry.
    """
    items = [item for token in _TOKEN.split(pattern) for item in ((token,) if token in _WILD else token)]
    places = _after_stars(items, {0})
    for character in beginning:
        reached = set()
        for place in places:
            item = items[place] if place < len(items) else ""
            if item == character or (item == "?" and character != "/"):
                reached.add(place + 1)
            elif item == "**" or (item == "*" and character != "/"):
                reached.add(place)
        places = _after_stars(items, reached)
        if not places:
            return False
    return any(place < len(items) for place in places)


def _after_stars(items: list[str], places: set[int]) -> set[int]:
    """The places in a pattern from which it can go on: a star may stand for nothing."""
    reached = set(places)
    for place in places:
        while place < len(items) and items[place] in ("*", "**"):
            place += 1
            reached.add(place)
    return reached


def looks_like_host(first: str) -> bool:
    """Whether the first part of a name is a host. `library` and `bitnami` are names on the default registry."""
    return "." in first or ":" in first or first == "localhost"


def full_name(name: str, *, library: bool) -> str:
    """The name of a repository as its registry has it. `library`: see `Registry`."""
    return f"{LIBRARY}{name}" if library and "/" not in name else name


@dataclass(frozen=True, slots=True)
class Registry:
    """One configured registry. `name` is as clients write it, or `*.suffix` for all hosts below a domain.

    `aliases` are other names of the same registry, `hosts` are the `Host` headers that lead to it. `library` says that
    a name of one part means `library/<name>`, which is true of Docker Hub only. `hosted`: this mirror hosts the
    registry, which has no upstream. `members`: this is a virtual registry, a name for these.
    """

    name: str
    aliases: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    library: bool = False
    hosted: bool = False
    members: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RoutingTable:
    """All registries. `build` makes the table once from the configuration."""

    default: str | None
    exact: Mapping[str, Registry] = field(default_factory=dict)
    wildcards: tuple[tuple[str, Registry], ...] = ()
    hosts: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def build(cls, registries: Iterable[Registry], default: str | None) -> RoutingTable:
        """Make the table. The first of two entries for the same name counts; longer wildcards precede shorter ones."""
        exact: dict[str, Registry] = {}
        hosts: dict[str, str] = {}
        wildcards: list[tuple[str, Registry]] = []
        for registry in registries:
            if registry.name.startswith("*."):
                wildcards.append((registry.name[1:], registry))
            for name in (registry.name, *registry.aliases):
                exact.setdefault(name, registry)
            for host in registry.hosts:
                hosts.setdefault(host.lower(), registry.name)
        wildcards.sort(key=lambda pair: -len(pair[0]))
        return cls(default, exact, tuple(wildcards), hosts)

    def registry(self, name: str) -> tuple[str, Registry] | None:
        """The entry for a registry's name, and the name under which its content is stored; None if not configured."""
        if (entry := self.exact.get(name)) and not name.startswith("*"):
            return entry.name, entry
        for suffix, entry in self.wildcards:
            if name.endswith(suffix) and len(name) > len(suffix):
                return name, entry
        return None

    def label(self, name: str) -> str:
        """The name of the entry that a registry belongs to, for metrics: the configuration bounds the number of
        entries, while clients can invent names under a wildcard. Empty if the registry is unknown.
        """
        found = self.registry(name)
        return found[1].name if found is not None else ""

    def is_registry(self, first: str) -> bool:
        """Whether the first of several parts of a name is meant as a registry, configured or not."""
        entry = self.exact.get(first.lower())
        return looks_like_host(first) or (entry is not None and (entry.hosted or bool(entry.members)))

    def hosts_registry(self, name: str) -> bool:
        """Whether this mirror hosts the registry of this name."""
        found = self.registry(name)
        return found is not None and found[1].hosted

    def members(self, name: str) -> tuple[str, ...]:
        """The registries that a virtual registry stands for, in order; none if it is not virtual."""
        found = self.registry(name)
        return found[1].members if found is not None else ()

    def meant_by(self, host: str | None) -> str | None:
        """The name of the registry that a `Host` header is assigned to; None if there is none."""
        if not host or not self.hosts:
            return None
        host = host.lower()
        return self.hosts.get(host) or self._meant_by_part(host)

    def _meant_by_part(self, host: str) -> str | None:
        """Like `meant_by`, without the port and without the dot that a full domain name may end with (RFC 1034, 3.1):
        otherwise, `?ns=` would decide.
        """
        name, port = _split(host)
        name = name.removesuffix(".")
        return self.hosts.get(f"{name}:{port}") or self.hosts.get(name)

    def route(self, path_name: str, *, host: str | None = None, ns: str | None = None) -> Repo:
        """The repository that a request is for. `path_name` is the part of the path between `/v2/` and the resource.

        Raises `NameInvalid` for a name outside the grammar, `NameUnknown` for a registry that is not configured.
        """
        first, slash, rest = path_name.partition("/")
        registry = None
        if ns:
            # also if something else decides: answers repeat it in a header
            check_registry(ns.lower())
        if mapped := self.meant_by(host):
            registry = self.registry(mapped)
        elif ns:
            registry = (self._virtual_in_path(first) if slash else None) or self._named(ns)
        if registry is not None:
            if slash and (again := self._in_path(first)) and again[0] == registry[0]:
                path_name = rest
        elif slash and (registry := self._in_path(first)):
            path_name = rest
        elif self.default is not None:
            registry = self.registry(self.default)
        if registry is None:
            raise NameUnknown("no registry is named (by Host, ?ns= or path) and there is no default one")
        name, entry = registry
        return Repo(name, check_name(full_name(path_name, library=entry.library)))

    def _named(self, ns: str) -> tuple[str, Registry]:
        registry = self.registry(check_registry(ns.lower()))
        if registry is None:
            raise NameUnknown(f"the registry {ns} is not configured in this mirror")
        return registry

    def _virtual_in_path(self, first: str) -> tuple[str, Registry] | None:
        entry = self.exact.get(first.lower())
        return (entry.name, entry) if entry is not None and entry.members else None

    def _in_path(self, first: str) -> tuple[str, Registry] | None:
        """The registry that the first path component names; None if it is meant as none, or is unknown."""
        if not self.is_registry(first):
            return None
        try:
            return self.registry(check_registry(first.lower()))
        except NameInvalid:
            return None


def _split(host: str) -> tuple[str, str]:
    """The name and the port of a `Host` header; the port may be empty (RFC 9110, 4.2.3)."""
    name, colon, port = host.rpartition(":")
    return (name, port) if colon and (port.isdigit() or not port) else (host, "")
