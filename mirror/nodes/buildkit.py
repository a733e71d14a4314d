"""BuildKit: `mirrors` in `buildkitd.toml`, for each registry by its name.

BuildKit sends requests below the path of a mirror's URL. The path is the name of the registry, which tells our mirror
which one is meant.
"""

from __future__ import annotations

from typing import Any, Final

from mirror.errors import ConfigError
from mirror.nodes.plan import BOM, Asked, Change, Client, FilePlan, Files, NodeRefused, Wanted, written_by
from mirror.nodes.toml_text import parse, set_keys, table_of

_HOME: Final = "/etc/buildkit"
_FILE: Final = f"{_HOME}/buildkitd.toml"
_AUTHORITY: Final = f"{_HOME}/mirror-ca.pem"

_RESTART: Final = "systemctl restart buildkit, or docker buildx create --buildkitd-config for a new builder"


def _plan(files: Files, wanted: Wanted) -> FilePlan:
    """The plan for BuildKit. Raises `ConfigError` if its file cannot express what is `wanted`, `NodeRefused`."""
    mistakes = [f"--registry {name}: BuildKit has no wildcards" for name in wanted.registries if name.startswith("*.")]
    if wanted.account:
        mistakes.append(f"--username: use `docker login {wanted.mirror.address}` on the machine that starts the builds")
    if not wanted.fallback:
        mistakes.append("--no-fallback: BuildKit always asks the registry itself when its mirrors fail")
    if mistakes:
        raise ConfigError(mistakes)
    address = wanted.mirror.address
    content = files.text(_FILE) or ""
    if not content.strip(f"{BOM} \t\r\n"):
        content = written_by("buildkit")
    for name in wanted.registries or tuple(name for name in wanted.public if not name.startswith("*.")):
        table = ("registry", name)
        place = wanted.place(name)
        others = _mirrors(parse(content, _FILE), name)
        wanted_list = [place, *(mirror for mirror in others if mirror != place)]
        content = set_keys(content, _FILE, table, {"mirrors": wanted_list})
    changes = []
    if wanted.mirror.is_plain:
        content = set_keys(content, _FILE, ("registry", address), {"http": True})
    elif table_of(parse(content, _FILE), ("registry", address)).get("http"):
        # left from a time when the mirror had no TLS, in a file that was edited since
        content = set_keys(content, _FILE, ("registry", address), {"http": False})
    if wanted.authority:
        content = set_keys(content, _FILE, ("registry", address), {"ca": [_AUTHORITY]})
        changes.append(Change(_AUTHORITY, wanted.authority, _RESTART))
    notes = []
    if not wanted.registries and (wild := [name for name in wanted.public if name.startswith("*.")]):
        notes.append(f"left out: {', '.join(wild)}: BuildKit has no wildcards; name each host with --registry")
    return FilePlan((*changes, Change(_FILE, content, _RESTART)), tuple(notes))


def _mirrors(data: dict[str, Any], name: str) -> list[str]:
    mirrors = table_of(data, ("registry", name)).get("mirrors", [])
    if not isinstance(mirrors, list) or not all(isinstance(mirror, str) for mirror in mirrors):
        raise NodeRefused(f'{_FILE}: mirrors of [registry."{name}"] is not a list of strings')
    return mirrors


def _asks(files: Files, registry: str) -> Asked:
    data = parse(files.text(_FILE) or "", _FILE)
    hosts = []
    for place in _mirrors(data, registry):
        plain = table_of(data, ("registry", place.partition("/")[0])).get("http", False)
        hosts.append(f"{'http' if plain else 'https'}://{place}")
    return Asked(tuple(hosts), _FILE, named=bool(table_of(data, ("registry", registry))))


BUILDKIT: Final = Client("buildkit", _HOME, _plan, _asks)
