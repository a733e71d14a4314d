"""containerd: a `hosts.toml` for each registry, or one for all, and `config_path` in `config.toml` that points to them.

    /etc/containerd/config.toml                     config_path = "/etc/containerd/certs.d"    restart
    /etc/containerd/certs.d/_default/hosts.toml     the hosts to ask for all registries        read at each pull
    /etc/containerd/certs.d/ghcr.io/hosts.toml      the same for one: overrides `_default`
    /etc/containerd/certs.d/mirror:5000/hosts.toml  the mirror by its own name: scheme, authority, login

`config_path` is a setting of the runtime interface (CRI), which Kubernetes uses; `ctr --hosts-dir` and nerdctl read the
folder without it. The name of this plugin's table depends on the version of `config.toml`: version 2 is containerd 1.x
(2.x reads it, too), version 3 is containerd 2.x, version 4 is 2.3 and later and has the same name as 3.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from typing import Any, Final

from mirror.errors import ConfigError
from mirror.nodes.plan import DIAL_TIMEOUT, Asked, Change, Client, FilePlan, Files, NodeRefused, Wanted, written_by
from mirror.nodes.toml_text import drop_table, insert_before_tables, literal, parse, set_keys, table_of

_HOME: Final = "/etc/containerd"
_CONFIG: Final = f"{_HOME}/config.toml"
_FOLDER: Final = f"{_HOME}/certs.d"
_ALL: Final = "_default"
_AUTHORITY: Final = "mirror-ca.pem"

#: The table with the registries of the runtime interface, by the version of the file.
_REGISTRY: Final = {
    1: ("plugins", "cri", "registry"),
    2: ("plugins", "io.containerd.grpc.v1.cri", "registry"),
    3: ("plugins", "io.containerd.cri.v1.images", "registry"),
    4: ("plugins", "io.containerd.cri.v1.images", "registry"),
}
#: The names of the runtime interface in `disabled_plugins`.
_DISABLED: Final = {"cri", "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images"}

_SEVERAL: Final = "config_path names several folders, so containerd 2 may read none of them and bypass the mirror"
_RESTART: Final = "systemctl restart containerd (containers keep running)"


@dataclass(frozen=True, slots=True)
class _Settings:
    """One of the daemon's files: its text, the parsed text, and the path of the table with the registries."""

    path: str
    text: str
    data: Mapping[str, Any]
    table: tuple[str, ...]

    @property
    def registry(self) -> Mapping[str, Any]:
        return table_of(self.data, self.table)


def _settings(files: Files) -> list[_Settings]:
    """`config.toml` and the files that it imports, in the order in which they are read. Raises `NodeRefused`."""
    text = files.text(_CONFIG)
    if text is None:
        return []
    data = parse(text, _CONFIG)
    version = _version(data, 1)
    settings = [_Settings(_CONFIG, text, data, _REGISTRY[version])]
    for path in _imported(files, data):
        inner = files.text(path) or ""
        meant = parse(inner, path)
        settings.append(_Settings(path, inner, meant, _REGISTRY[_version(meant, version)]))
    return settings


def _version(data: Mapping[str, Any], otherwise: int) -> int:
    version = data.get("version", otherwise)
    if version not in _REGISTRY:
        raise NodeRefused(f"{_CONFIG}: version {version!r} is not supported; 2 to 4 are")
    return int(version)


def _imported(files: Files, data: Mapping[str, Any]) -> Iterator[str]:
    imports = data.get("imports", [])
    for pattern in imports if isinstance(imports, list) else []:
        folder, name = posixpath.split(posixpath.join(_HOME, str(pattern)))
        for file in files.names(folder):
            if fnmatch(file, name):
                yield f"{folder}/{file}"


def _folders(settings: list[_Settings]) -> tuple[str, ...]:
    """The folders in which containerd looks for `hosts.toml`; empty if `config_path` is not set."""
    paths = [str(file.registry["config_path"]) for file in settings if file.registry.get("config_path")]
    return tuple(filter(None, paths[-1].split(":"))) if paths else ()


def _is_disabled(settings: list[_Settings]) -> bool:
    return any(_DISABLED & set(file.data.get("disabled_plugins", [])) for file in settings)


# ------------------------------------------------------------------------------------------------------------- plan


def _plan(files: Files, wanted: Wanted) -> FilePlan:
    """The plan for containerd. Raises `ConfigError` if its files cannot express what is `wanted`, `NodeRefused`."""
    if wild := [name for name in wanted.registries if name.startswith("*.")]:
        raise ConfigError(
            [f"--registry {name}: containerd has no wildcards; name hosts, or none for all registries" for name in wild]
        )
    settings = _settings(files)
    changes, notes, conflicts = _config_path(files, settings)
    folder = (_folders(settings) or (_FOLDER,))[0]
    own = (wanted.mirror.address,) if wanted.own_name else ()
    names = wanted.registries or (_ALL,)
    for name in (*names, *own):
        path = f"{folder}/{name}/hosts.toml"
        write = _own_host if name in own else _hosts
        content, trouble = write(files.text(path), path, wanted)
        if trouble:
            conflicts.append(trouble)
            continue
        changes.append(Change(path, content, secret=wanted.account is not None))
        if wanted.authority:
            changes.append(Change(f"{folder}/{name}/{_AUTHORITY}", wanted.authority))
        if before := [
            alias for alias in _folders_of(name)[:-1] if files.text(f"{folder}/{alias}/hosts.toml") is not None
        ]:
            conflicts.append(f"{folder}/{before[0]}/hosts.toml: takes precedence over {path}: remove it first")
    if not wanted.registries:
        others = [
            name
            for name in files.names(folder)
            if name not in (_ALL, *own) and files.text(f"{folder}/{name}/hosts.toml") is not None
        ]
        notes += [f"{folder}/{name}/hosts.toml overrides {_ALL}; change it with --registry {name}" for name in others]
    return FilePlan(tuple(changes), tuple(notes), tuple(conflicts), "containerd reads hosts.toml at each pull")


def _folders_of(registry: str) -> tuple[str, ...]:
    """The names of a registry's folder, in the order in which containerd looks for them. A port may be between
    underscores (containerd's hosts.md).
    """
    host, colon, port = registry.rpartition(":")
    return (f"{host}_{port}_", registry) if colon else (registry,)


def _config_path(files: Files, settings: list[_Settings]) -> tuple[list[Change], list[str], list[str]]:
    """The changes, notes and conflicts that concern `config_path`."""
    legacy = [file for file in settings if _excludes_hosts(file.registry)]
    if legacy:
        where = ", ".join(file.path for file in legacy)
        return (
            [],
            [],
            [
                f"{where}: registry.mirrors or tls of registry.configs is set; containerd does not load the runtime "
                "interface when config_path is set beside them. Move them into hosts.toml files first"
            ],
        )
    if folders := _folders(settings):
        return _one_folder(files, settings, folders) if len(folders) > 1 else ([], [], [])
    if _is_disabled(settings):
        note = f"{_CONFIG}: the runtime interface is disabled, so config_path is not needed; ctr takes --hosts-dir"
        return [], [note], []
    if not settings:
        content = written_by("containerd") + "version = 2\n"
        content = set_keys(content, _CONFIG, _REGISTRY[2], {"config_path": _FOLDER})
        return [Change(_CONFIG, content, _RESTART)], [], []
    # a plugin's settings in an imported file replace those of the files before it
    holders = [file for file in settings if table_of(file.data, file.table[:2])] or settings[:1]
    file = holders[-1]
    if file.table == _REGISTRY[1]:
        line = f'[plugins.cri.registry]\n  config_path = "{_FOLDER}"'
        return (
            [],
            [],
            [f"{file.path}: has no version, or version 1; make it version 2, or add these lines:\n{line}"],
        )
    return [Change(file.path, set_keys(file.text, file.path, file.table, {"config_path": _FOLDER}), _RESTART)], [], []


def _excludes_hosts(registry: Mapping[str, Any]) -> bool:
    """True if the table has settings that exclude `config_path`: `mirrors`, or `tls` in `configs`. `auth` does not."""
    configs = registry.get("configs")
    of = configs.values() if isinstance(configs, dict) else ()
    return bool(registry.get("mirrors")) or any(isinstance(config, dict) and "tls" in config for config in of)


def _one_folder(
    files: Files, settings: list[_Settings], folders: tuple[str, ...]
) -> tuple[list[Change], list[str], list[str]]:
    """The changes, notes and conflicts if `config_path` names several folders.

    `containerd config default` writes `config_path = "/etc/containerd/certs.d:/etc/docker/certs.d"`. The transfer
    service of containerd, which pulls images since 2.1, takes this for the name of one folder, finds nothing there, and
    bypasses the mirror. So `config_path` is reduced to its first folder if the others are empty; otherwise there is
    only a note.
    """
    file = next(file for file in reversed(settings) if file.registry.get("config_path"))
    if used := [folder for folder in folders[1:] if files.names(folder)]:
        note = f"{file.path}: {_SEVERAL}; move the files in {', '.join(used)} to {folders[0]}, and name only that"
        return [], [note], []
    content = set_keys(file.text, file.path, file.table, {"config_path": folders[0]})
    return [Change(file.path, content, _RESTART)], [], []


def _hosts(present: str | None, path: str, wanted: Wanted) -> tuple[str, str]:
    """The text of a `hosts.toml`, and why it cannot be written; empty if it can. `present` is the present text."""
    url = wanted.endpoint
    if present is None or not present.strip("\ufeff \t\r\n"):
        return written_by("containerd") + _block(wanted), ""
    data = parse(present, path)
    ours = parse(_block(wanted), path)
    if not wanted.fallback:
        if data == ours:
            return present, ""
        return present, f"{path}: names other hosts, which --no-fallback forbids: remove it first"
    hosts = data.get("host", {})
    if url in hosts:
        if hosts[url] != ours["host"][url]:
            return present, f'{path}: has [host."{url}"] with other settings: remove that table first'
        if next(iter(hosts)) == url:
            return present, ""
        # containerd asks hosts in the order of the file, so the mirror's table moves to the front
        present = drop_table(present, path, ("host", url))
    return insert_before_tables(present, path, _block(wanted), ours), ""


def _own_host(present: str | None, path: str, wanted: Wanted) -> tuple[str, str]:
    """Like `_hosts`, for the mirror by its own name, to which images are pushed as well."""
    block = _block(replace(wanted, fallback=False, virtual=""), push=True)
    if present is None or not present.strip("\ufeff \t\r\n"):
        return written_by("containerd") + block, ""
    if parse(present, path) == parse(block, path):
        return present, ""
    return present, f"{path}: has other settings for the mirror itself: remove it first"


def _block(wanted: Wanted, *, push: bool = False) -> str:
    """The mirror's table in `hosts.toml`: a host that is asked before the registry itself.

    Without fallback the mirror is also the `server`, in place of the registry. It is named twice then, because
    containerd 1.x refuses a file without a host.
    """
    capabilities = ["pull", "resolve", *(["push"] if push else [])]
    settings: dict[str, object] = {"capabilities": capabilities, "dial_timeout": DIAL_TIMEOUT}
    if wanted.virtual:
        settings["override_path"] = True  # else containerd adds /v2 to the path
    if wanted.authority:
        settings["ca"] = _AUTHORITY  # relative to the folder of hosts.toml
    header = f"Authorization = {literal(wanted.account.basic)}\n" if wanted.account else ""
    url = literal(wanted.endpoint)
    lines = [f"{key} = {literal(value)}\n" for key, value in settings.items()]
    block = f"[host.{url}]\n" + "".join(f"  {line}" for line in lines)
    block += f"  [host.{url}.header]\n    {header}" if header else ""
    if wanted.fallback:
        return block
    server = f"server = {url}\n" + "".join(lines) + (f"[header]\n  {header}" if header else "")
    return f"{server}\n{block}"


# ------------------------------------------------------------------------------------------------------------- asks


def _asks(files: Files, registry: str) -> Asked:
    settings = _settings(files)
    folders = _folders(settings)
    trouble = []
    if not folders and not _is_disabled(settings):
        trouble.append(f"{_CONFIG}: config_path is not set: Kubernetes' pulls do not read hosts.toml")
    doubts = (f"{_CONFIG}: {_SEVERAL}",) if len(folders) > 1 else ()
    for folder in folders or (_FOLDER,):
        for name in (*_folders_of(registry), _ALL):
            path = f"{folder}/{name}/hosts.toml"
            if (text := files.text(path)) is None:
                continue
            data = parse(text, path)
            hosts = [host for host, of in data.get("host", {}).items() if _pulls(of)]
            server = [data["server"]] if isinstance(data.get("server"), str) else []
            return Asked((*hosts, *server), path, tuple(trouble), doubts, named=name != _ALL)
    return Asked((), (folders or (_FOLDER,))[0], tuple(trouble), doubts)


def _pulls(host: object) -> bool:
    return isinstance(host, dict) and {"pull", "resolve"} <= set(host.get("capabilities", ("pull", "resolve")))


CONTAINERD: Final = Client("containerd", _HOME, _plan, _asks)
