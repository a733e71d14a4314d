"""Docker: `registry-mirrors` in `daemon.json`, which dockerd uses for images of Docker Hub only.

JSON is changed as text: the other keys, their order and their spelling stay. dockerd needs a reload only. The
authorities to trust at a registry are in `/etc/docker/certs.d/<host:port>/`, which dockerd reads at each pull.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Final

from mirror.errors import ConfigError
from mirror.nodes.plan import BOM, Asked, Change, Client, FilePlan, Files, MirrorUrl, NodeRefused, Wanted

_HOME: Final = "/etc/docker"
_FILE: Final = f"{_HOME}/daemon.json"
_HUB: Final = "docker.io"
_MIRRORS: Final = "registry-mirrors"
_PLAIN: Final = "insecure-registries"

_RELOAD: Final = "systemctl reload docker"

#: Problems that only Docker has with a mirror that works for other clients (seen with dockerd 28).
TOKENS: Final = (
    "with containerd's image store dockerd does not use certs.d for the token endpoint: if the mirror asks for a "
    'login, pulls by its name fail with "x509: certificate signed by unknown authority"'
)
TRUST_TOO: Final = (
    "add the authority to the system's store as well (update-ca-certificates, or update-ca-trust), then restart docker"
)
BY_HTTP: Final = (
    "with containerd's image store dockerd asks a registry called localhost by http, which TLS does not answer"
)

#: Where dockerd's command line may be set: dockerd does not start if both it and `daemon.json` have a setting.
_COMMAND_LINES: Final = (
    ("/etc/systemd/system/docker.service.d", "*"),
    ("/etc/systemd/system", "docker.service"),
    ("/usr/lib/systemd/system", "docker.service"),
    ("/etc/default", "docker"),
    ("/etc/sysconfig", "docker"),
)


def _plan(files: Files, wanted: Wanted) -> FilePlan:
    """The plan for Docker. Raises `ConfigError` if `daemon.json` cannot express what is `wanted`, `NodeRefused`."""
    mistakes = [
        f"--registry {name}: Docker uses mirrors for docker.io only; pull {wanted.mirror.address}/{name}/... instead"
        for name in wanted.registries
        if name != _HUB
    ]
    if wanted.account:
        mistakes.append(f"--username: daemon.json cannot contain passwords; use `docker login {wanted.mirror.address}`")
    if wanted.virtual:
        mistakes.append("--virtual: mirrors of Docker have no path; set default_registry of the mirror to this name")
    if not wanted.fallback:
        mistakes.append("--no-fallback: Docker always asks Docker Hub itself when its mirrors fail")
    if mistakes:
        raise ConfigError(mistakes)
    text = files.text(_FILE)
    content = _merge(text or "", wanted.mirror)
    changes = [Change(_FILE, content, _RELOAD)]
    if wanted.authority:
        changes.append(Change(f"{_HOME}/certs.d/{wanted.mirror.address}/ca.crt", wanted.authority))
    notes = [f"Docker uses mirrors for docker.io only; for others: docker pull {wanted.mirror.address}/ghcr.io/..."]
    if wanted.authority:
        notes.append(f"{TOKENS}: {TRUST_TOO}")
    if not wanted.mirror.is_plain and wanted.mirror.host == "localhost":
        notes.append(f"{BY_HTTP}: give the mirror another name")
    others = [url for url in _strings(_read(content), _MIRRORS) if not wanted.mirror.is_at(url)]
    if others:
        notes.append(f"{_FILE}: other mirrors stay, after this one: {', '.join(map(_without_user, others))}")
    return FilePlan(
        tuple(changes), tuple(notes), tuple(_on_command_line(files, content)), "dockerd reads certs.d at each pull"
    )


def _merge(text: str, mirror: MirrorUrl) -> str:
    """The text of `daemon.json` with the mirror as the first of the mirrors. Raises `NodeRefused`."""
    data = _read(text)
    mirrors = _strings(data, _MIRRORS)
    if not mirrors or not mirror.is_at(mirrors[0]):
        text = _set(text, _MIRRORS, [str(mirror), *(url for url in mirrors if not mirror.is_at(url))])
    plain = _strings(data, _PLAIN)
    # dockerd allows loopback addresses without TLS by default
    if mirror.is_plain and not mirror.is_loopback and mirror.address not in plain:
        text = _set(text, _PLAIN, [*plain, mirror.address])
    return text


def _read(text: str) -> dict[str, Any]:
    """The settings in the text of `daemon.json`. Raises `NodeRefused` with the position of a syntax error."""
    if not text.strip(f"{BOM} \t\r\n"):
        return {}

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise NodeRefused(f"{_FILE}: {', '.join(twice)} is there twice; dockerd uses one of them")
        return dict(pairs)

    try:
        data = json.loads(text.removeprefix(BOM), object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise NodeRefused(
            f"{_FILE}: not JSON: {error.msg} (line {error.lineno}, column {error.colno}); repair it first"
        ) from error
    if not isinstance(data, dict):
        raise NodeRefused(f"{_FILE}: not a JSON object")
    return data


def _strings(data: dict[str, Any], key: str) -> list[str]:
    value = data.get(key)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(url, str) for url in value):
        raise NodeRefused(f"{_FILE}: {key} is not a list of strings; dockerd does not accept it either")
    return value


def _set(text: str, key: str, values: Sequence[str]) -> str:
    """The text with one key of the object set and everything else as it was. Raises `NodeRefused`."""
    expected = {**_read(text), key: list(values)}
    newline = "\r\n" if "\r\n" in text else "\n"
    if not text.strip(f"{BOM} \t\r\n"):
        text = "{}\n"
    members, after = _members(text)
    inner = re.match(r"\s*\n([ \t]+)", text[text.index("{") + 1 :])
    indent = inner[1] if inner else "  "
    written = json.dumps(list(values), ensure_ascii=False)
    if key in members:
        start, end = members[key]
        changed = text[:start] + written + text[end:]
    elif members:
        comma = ", " if inner is None else f",{newline}{indent}"
        changed = f'{text[:after]}{comma}"{key}": {written}{text[after:]}'
    else:
        brace = text.index("{") + 1
        changed = f'{text[:brace]}{newline}{indent}"{key}": {written}{newline}{text[text.index("}", brace) :]}'
    if _read(changed) != expected:
        raise NodeRefused(f"{_FILE}: cannot be changed safely; set {key} to {written}")
    return changed


def _members(text: str) -> tuple[dict[str, tuple[int, int]], int]:
    """The start and end of each key's value, and the end of the last value. The text must be a JSON object."""
    decoder = json.JSONDecoder()
    blank = re.compile(r"[ \t\r\n]*")
    members: dict[str, tuple[int, int]] = {}
    at = end = text.index("{") + 1

    def skip(position: int) -> int:
        match = blank.match(text, position)
        return match.end() if match else position

    while text[at := skip(at)] != "}":
        at = skip(at + 1) if text[at] == "," else at
        key, at = decoder.raw_decode(text, at)
        at = skip(skip(at) + 1)
        _, end = decoder.raw_decode(text, at)
        members[key] = (at, end)
        at = end
    return members, end


def _on_command_line(files: Files, content: str) -> list[str]:
    conflicts = []
    data = _read(content)
    for folder, name in _COMMAND_LINES:
        for file in files.names(folder):
            if name not in ("*", file):
                continue
            text = files.text(f"{folder}/{file}") or ""
            for option, key in (("--registry-mirror", _MIRRORS), ("--insecure-registry", _PLAIN)):
                if key in data and re.search(rf"^[^#\n]*{option}\b", text, re.MULTILINE):
                    conflicts.append(
                        f"{folder}/{file}: has {option}; dockerd does not start with {key} in {_FILE} as well"
                    )
    return conflicts


def _without_user(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//", url)


def _asks(files: Files, registry: str) -> Asked:
    data = _read(files.text(_FILE) or "")
    mirrors = _strings(data, _MIRRORS)
    if registry != _HUB:
        trouble = (f"Docker uses mirrors for docker.io only, not for {registry}",)
        return Asked((), _FILE, trouble, named=registry in _strings(data, _PLAIN))
    return Asked(tuple(map(_without_user, mirrors)), _FILE)


DOCKER: Final = Client("docker", _HOME, _plan, _asks)
