"""The drawing of the layers is true: who imports whom, by folder, and every module can be imported alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

import pytest

_ROOT: Final = Path(__file__).resolve().parents[2]

#: What each folder or file of the package may import of the package; itself is allowed.
_MAY_IMPORT: Final = {
    # leaves
    "errors": set[str](),
    "once": set(),
    "latest": set(),
    "threads": set(),
    "beats": set(),
    "counts": set(),
    "telemetry": {"counts"},
    "tracing": {"telemetry"},
    "memo": {"once"},
    # pure
    "oci": {"errors"},
    "policy": {"errors", "oci"},
    "ports": {"oci", "policy"},
    # whom work is done for: what asks upstream and what keeps callers apart read it
    "behalf": {"oci"},
    # adapters: never each other, nor what uses them
    "store": {"errors", "oci", "policy", "ports", "telemetry", "once"},
    "index": {"errors", "oci", "policy", "ports", "telemetry", "once", "threads"},
    "upstream": {"errors", "latest", "oci", "policy", "ports", "telemetry", "memo", "once", "behalf"},
    "access": {"errors", "latest", "oci", "policy", "ports", "telemetry", "once"},
    # what the product does, and HTTP in front of it
    "graph": {"errors", "oci", "policy", "ports", "telemetry"},
    "repository": {
        "errors",
        "latest",
        "oci",
        "policy",
        "ports",
        "telemetry",
        "memo",
        "once",
        "threads",
        "behalf",
        "graph",
    },
    "transfer": {"errors", "oci", "policy", "ports", "telemetry", "once", "threads", "graph", "repository"},
    "server": {
        "errors",
        "oci",
        "policy",
        "ports",
        "telemetry",
        "repository",
        "transfer",
        "access",
        "threads",
        "behalf",
    },
    # machines that pull
    "nodes": {"errors", "oci", "policy"},
    # processes
    "listen": {"errors"},
    "systemd": set(),
    "supervisor": {"errors", "telemetry", "listen", "beats", "counts", "systemd"},
}

#: Libraries that only some parts may know.
_ONLY_IN: Final = {
    "aiohttp": {"server", "upstream", "access", "worker"},
    "aiohttp.web": {"server", "worker"},
    "aiocache": {"memo"},
    "aiosqlite": {"index"},
    "sqlite3": {"index"},
    "redis": {"index", "memo"},
    "google": {"upstream"},
    "botocore": {"upstream"},
    "requests": {"upstream"},
    "prometheus_client": {"telemetry", "counts", "server"},
    "structlog": {"telemetry"},
    "opentelemetry": {"tracing"},
    "yaml": {"transfer", "nodes"},
    "cryptography": {"transfer", "access", "repository", "nodes"},
    "bcrypt": {"access"},
    "jwt": {"access"},
    "cronsim": {"policy"},
    "semantic_version": {"policy"},
    "pydantic": {"config"},
    "pydantic_settings": {"config"},
    "typer": {"cli"},
    "rich": {"cli"},
    "uvloop": {"worker"},
    "mirror.config": {"app", "cli", "config", "worker"},
    "mirror.app": {"app", "cli", "worker"},
    "mirror.tracing": {"app"},
}


def _modules() -> list[str]:
    names = (file.relative_to(_ROOT).with_suffix("").parts for file in sorted((_ROOT / "mirror").rglob("*.py")))
    return [".".join(parts).removesuffix(".__init__") for parts in names]


@cache
def _imports() -> list[tuple[str, str]]:
    return list(_read_imports())


def _read_imports() -> Iterator[tuple[str, str]]:
    """Pairs of a part of the package (a folder, or a file at its top) and the full name that it imports."""
    for file in (_ROOT / "mirror").rglob("*.py"):
        part = file.relative_to(_ROOT / "mirror").parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                yield from ((part, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{file}: imports are absolute"
                yield from ((part, f"{node.module}.{alias.name}") for alias in node.names)


def _within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def test_folders_import_only_what_lies_below() -> None:
    """Each part imports no more of the package than the drawing says; nothing is left out of the drawing."""
    used: dict[str, set[str]] = {}
    for part, name in _imports():
        if _within(name, "mirror"):
            top = name.split(".")[1] if "." in name else ""
            used.setdefault(part, set()).add(top)
    composing = {"__init__", "__main__", "app", "cli", "config", "worker"}
    parts = {module.split(".")[1] for module in _modules() if "." in module}
    assert parts - composing == _MAY_IMPORT.keys()
    for part, allowed in _MAY_IMPORT.items():
        assert used.get(part, set()) <= {part, *allowed}, part


@pytest.mark.parametrize("library", _ONLY_IN)
def test_libraries_are_known_in_few_places(library: str) -> None:
    """A library is met at one border only, so that it can be replaced there."""
    assert {part for part, name in _imports() if _within(name, library)} <= _ONLY_IN[library]


@pytest.mark.parametrize("folder", ["oci", "policy"])
def test_pure_folders_do_nothing(folder: str) -> None:
    """What decides does not act: no loop, no thread, no file, no socket, no clock."""
    acting = ("asyncio", "threading", "concurrent", "socket", "os", "pathlib", "subprocess", "time", "random", "shutil")
    assert not [name for part, name in _imports() if part == folder and any(_within(name, one) for one in acting)]


_IMPORT_ALONE = """
import importlib, os, sys, traceback
import aiocache, aiohttp.web, aiosqlite, bcrypt, cryptography.fernet, cryptography.x509, cronsim, jwt, prometheus_client
import pydantic_settings, redis.asyncio, rich.progress, rich.table, semantic_version, structlog, typer, uvloop, yaml
# what the package is compiled to is kept for the next child, whatever this run was started with
sys.pycache_prefix, sys.dont_write_bytecode = sys.argv.pop(1), False
failed = []
for name in sys.argv[1:]:
    child = os.fork()  # the libraries are loaded already; of the package nothing is
    if not child:
        assert not [one for one in sys.modules if one.split(".")[0] == "mirror"]
        try:
            importlib.import_module(name)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        failed.append(name)
sys.exit(f"cannot be imported alone: {failed}" if failed else 0)
"""


def test_every_module_can_be_imported_alone(tmp_path: Path) -> None:
    """No module needs another one to be imported before it: there are no circles."""
    names = [name for name in _modules() if name != "mirror.__main__"]
    done = subprocess.run(
        [sys.executable, "-c", _IMPORT_ALONE, tmp_path, *names], cwd=_ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
