"""podman, skopeo, buildah and CRI-O: a drop-in file for `registries.conf` with a block for each registry.

Files in `registries.conf.d` are read after `registries.conf`, in the order of their names; a block replaces an earlier
one with the same prefix (containers-registries.conf.d(5)). The path of the mirror's location tells it the registry:
`location = "mirror:5000/ghcr.io"`. A prefix with a wildcard (`*.pkg.dev`) matches whole hosts, and the location of a
mirror replaces the host, so that its name is lost. Such registries are configured host by host.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from mirror.errors import ConfigError
from mirror.nodes.plan import Asked, Change, Client, FilePlan, Files, Wanted, written_by
from mirror.nodes.toml_text import literal, parse

_HOME: Final = "/etc/containers"
_MAIN: Final = f"{_HOME}/registries.conf"
_DROP_INS: Final = f"{_HOME}/registries.conf.d"
_NAME: Final = "50-mirror.conf"
_FILE: Final = f"{_DROP_INS}/{_NAME}"


def _plan(client: str, needs: str, seen: str, files: Files, wanted: Wanted) -> FilePlan:
    """The plan for either client. Raises `ConfigError` if registries.conf cannot express what is `wanted`,
    `NodeRefused`.
    """
    mistakes = [f"--registry {name}: {_WILD}" for name in wanted.registries if name.startswith("*.")]
    if wanted.account:
        mistakes.append(f"--username: registries.conf cannot contain passwords; {_LOGIN[client]}")
    if mistakes:
        raise ConfigError([mistake.replace("ADDRESS", wanted.mirror.address) for mistake in mistakes])
    names = wanted.registries or tuple(name for name in wanted.public if not name.startswith("*."))
    # both clients share the file, so the marker is the same for both
    content = written_by("podman") + "".join(_block(name, wanted) for name in names)
    if wanted.own_name and wanted.mirror.is_plain:
        # with TLS, there is nothing to say about the mirror itself but its authority
        content += f"\n[[registry]]\nlocation = {literal(wanted.mirror.address)}\ninsecure = true\n"
    changes = [Change(_FILE, content, needs)]
    if wanted.authority:
        changes.append(Change(f"{_HOME}/certs.d/{wanted.mirror.address}/ca.crt", wanted.authority))
    notes, conflicts = _others(files, names)
    if wanted.mirror.is_ipv6:
        notes.insert(0, _IPV6)
    if not wanted.registries and (wild := [name for name in wanted.public if name.startswith("*.")]):
        notes.insert(0, f"left out: {', '.join(wild)}: {_WILD}")
    return FilePlan(tuple(changes), tuple(notes), tuple(conflicts), seen)


_WILD: Final = "a wildcard does not tell the mirror the host; name each host: --registry us-docker.pkg.dev"
_IPV6: Final = "releases before the autumn of 2023 fail every pull at an IPv6 address: give the mirror a name"
_LOGIN: Final = {
    "podman": "use `podman login ADDRESS`",
    "crio": "put ADDRESS into the file that global_auth_file of crio.conf names",
}


def _block(name: str, wanted: Wanted) -> str:
    place = literal(wanted.place(name))
    insecure = "insecure = true\n" if wanted.mirror.is_plain else ""
    # the location is asked when all mirrors fail; without fallback the location itself is the mirror
    location = f"location = {literal(name)}\n[[registry.mirror]]\n" if wanted.fallback else ""
    return f"\n[[registry]]\nprefix = {literal(name)}\n{location}location = {place}\n{insecure}"


def _others(files: Files, names: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Notes and conflicts about blocks for the same prefix in other files."""
    notes, conflicts = [], []
    for path, block in _blocks(files):
        prefix = block.get("prefix", block.get("location"))
        if path == _FILE or prefix not in names:
            continue
        if path > _FILE and path != _MAIN:
            conflicts.append(f"{path}: has a block for {prefix} that overrides this one: remove it first")
        elif block.get("blocked"):
            conflicts.append(f"{path}: blocks {prefix}, which this block would undo: remove that block first")
        else:
            notes.append(f"{path}: has a block for {prefix}, which this one replaces")
    return notes, conflicts


def _blocks(files: Files) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields every `[[registry]]` block and its file, in the order in which they are read."""
    paths = [_MAIN, *(f"{_DROP_INS}/{name}" for name in files.names(_DROP_INS) if name.endswith(".conf"))]
    for path in paths:
        data = parse(files.text(path) or "", path)
        blocks = data.get("registry", [])
        yield from ((path, block) for block in blocks if isinstance(block, dict))


def _asks(files: Files, registry: str) -> Asked:
    found: Asked | None = None
    for path, block in _blocks(files):
        prefix = str(block.get("prefix", block.get("location", "")))
        if prefix != registry and not (prefix.startswith("*.") and registry.endswith(prefix[1:])):
            continue
        mirrors = [mirror for mirror in block.get("mirror", []) if isinstance(mirror, dict) and mirror.get("location")]
        # locations have no scheme: with `insecure`, the client tries https and http
        asked = [str(mirror["location"]) for mirror in mirrors]
        location = str(block.get("location", ""))
        if location and location.partition("/")[0] != registry:
            asked.append(location)
        trouble = (f"{path}: {registry} is blocked",) if block.get("blocked") else ()
        found = Asked(tuple(asked), path, trouble, named=prefix == registry)
    return found or Asked((), _DROP_INS)


def _plan_podman(files: Files, wanted: Wanted) -> FilePlan:
    return _plan("podman", "", "podman, skopeo and buildah read it at each start", files, wanted)


def _plan_crio(files: Files, wanted: Wanted) -> FilePlan:
    return _plan("crio", "systemctl reload crio", "certificates are read at each pull", files, wanted)


PODMAN: Final = Client("podman", _HOME, _plan_podman, _asks)
CRIO: Final = Client("crio", _HOME, _plan_crio, _asks)
