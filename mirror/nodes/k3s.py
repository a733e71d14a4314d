"""k3s and RKE2: `registries.yaml`, from which they write containerd's `hosts.toml` when they start.

`"*"` matches every registry without an entry of its own. The mirror learns the registry from `?ns=`, so names are not
rewritten.

YAML is parsed and written anew. Comments are lost; the backup has them. Scalars that are not strings (`0123`, `no`)
keep their spelling: YAML reads them as numbers or booleans, but k3s takes them literally, for example as a password.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import yaml

from mirror.errors import ConfigError
from mirror.nodes.plan import BOM, Asked, Change, Client, FilePlan, Files, NodeRefused, Wanted, written_by

_ALL: Final = "*"

_RESTART: Final = {
    "k3s": "systemctl restart k3s (k3s-agent on an agent; containers keep running)",
    "rke2": "systemctl restart rke2-server (rke2-agent on an agent; containers keep running)",
}


def _plan(client: str, files: Files, wanted: Wanted) -> FilePlan:
    """The plan for k3s or RKE2. Raises `ConfigError` if their files cannot express what is `wanted`, `NodeRefused`."""
    if wild := [name for name in wanted.registries if name.startswith("*.")]:
        raise ConfigError(
            [f"--registry {name}: {client} has no wildcards; name hosts, or none for all registries" for name in wild]
        )
    home = f"/etc/rancher/{client}"
    path = f"{home}/registries.yaml"
    text = files.text(path) or ""
    data, before = _read(text, path), _read(text, path)
    mirrors = _mapping(data, "mirrors", path)
    own = (wanted.mirror.address,) if wanted.own_name else ()
    names = wanted.registries or (_ALL,)
    conflicts, changes = [], []
    for name in (*names, *own):
        entry = _mapping(mirrors, name, path)
        endpoints = _endpoints(entry, path)
        endpoint = str(wanted.mirror) if name in own else wanted.endpoint
        entry["endpoint"] = [endpoint, *(url for url in endpoints if not wanted.mirror.is_at(url))]
        if entry.get("rewrite"):
            conflicts.append(
                f"{path}: mirrors.{name}.rewrite changes the names that the mirror receives: remove it first"
            )
    secret = wanted.account is not None or bool(data.get("configs"))
    if wanted.authority or wanted.account:
        config = _mapping(_mapping(data, "configs", path), wanted.mirror.address, path)
        if wanted.authority:
            _mapping(config, "tls", path)["ca_file"] = f"{home}/mirror-ca.pem"
            changes.append(Change(f"{home}/mirror-ca.pem", wanted.authority, _RESTART[client]))
        if wanted.account:
            _mapping(config, "auth", path).update(
                {"username": wanted.account.username, "password": wanted.account.password}
            )
    content = text if data == before else _write(client, data, text)
    changes.append(Change(path, content, _RESTART[client], secret=secret))
    if not wanted.fallback:
        setting = written_by(client) + "disable-default-registry-endpoint: true\n"
        changes.append(Change(f"{home}/config.yaml.d/50-mirror.yaml", setting, _RESTART[client]))
    notes = []
    if content != text and re.search(r"(^|\s)#", text):
        notes.append(f"{path}: its comments are lost; the backup contains them")
    if not wanted.registries and (others := [str(name) for name in mirrors if name not in (_ALL, *own)]):
        notes.append(f"{path}: {', '.join(others)} have entries that override {_ALL!r}; change them with --registry")
    return FilePlan(tuple(changes), tuple(notes), tuple(conflicts))


@dataclass(frozen=True, slots=True)
class _Spelled:
    """A number, a date or a boolean, as it is spelled in the file."""

    tag: str
    text: str

    def __str__(self) -> str:
        return self.text


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses a repeated key, as k3s does."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and str(key.value) in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value} is there twice", problem_mark=key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    pass


def _spelled(_: yaml.SafeLoader, node: yaml.ScalarNode) -> _Spelled:
    return _Spelled(node.tag, str(node.value))


for _kind in ("bool", "int", "float", "timestamp"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _spelled)
_Dumper.add_representer(_Spelled, lambda dumper, value: dumper.represent_scalar(value.tag, value.text))


def _read(text: str, path: str) -> dict[str, Any]:
    """The parsed text. Raises `NodeRefused` with the position of a syntax error."""
    try:
        data = yaml.load(text.removeprefix(BOM), _Loader)  # noqa: S506  a safe loader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise NodeRefused(f"{path}: not YAML: {error.problem}{where}; repair it first") from error
    except yaml.YAMLError as error:
        raise NodeRefused(f"{path}: not YAML; repair it first") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise NodeRefused(f"{path}: not a mapping")
    return data


def _write(client: str, data: Mapping[str, Any], before: str) -> str:
    body = yaml.dump(
        dict(data), Dumper=_Dumper, sort_keys=False, default_flow_style=False, allow_unicode=True, width=1000
    )
    marker = written_by(client) if not before.strip(f"{BOM} \t\r\n") else f"# Changed by `mirror configure {client}`.\n"
    return marker + body


def _mapping(of: dict[str, Any], key: str, path: str) -> dict[str, Any]:
    """The mapping at a key; added if it does not exist. Raises `NodeRefused` if the value is not a mapping."""
    value = of.get(key)
    if value is None:
        value = of[key] = {}
    if not isinstance(value, dict):
        raise NodeRefused(f"{path}: {key} is not a mapping")
    return value


def _endpoints(entry: Mapping[str, Any], path: str) -> list[str]:
    endpoints = entry.get("endpoint") or []
    if not isinstance(endpoints, list) or not all(isinstance(url, str) for url in endpoints):
        raise NodeRefused(f"{path}: an endpoint is not a list of strings")
    return endpoints


def _asks(client: str, files: Files, registry: str) -> Asked:
    path = f"/etc/rancher/{client}/registries.yaml"
    mirrors = _mapping(_read(files.text(path) or "", path), "mirrors", path)
    for name in (registry, _ALL):
        if name in mirrors:
            return Asked(tuple(_endpoints(_mapping(mirrors, name, path), path)), path, named=name != _ALL)
    return Asked((), path)


K3S: Final = Client("k3s", "/etc/rancher/k3s", partial(_plan, "k3s"), partial(_asks, "k3s"))
RKE2: Final = Client("rke2", "/etc/rancher/rke2", partial(_plan, "rke2"), partial(_asks, "rke2"))
