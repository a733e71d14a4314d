"""The drawing of the layers is true: who imports whom, by folder, and every module can be imported alone."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Final

import pytest

_ROOT: Final = Path(__file__).resolve().parents[2]

#: Files of one folder, at most, not counting its `__init__`.
_MOST_FILES: Final = 20
#: Folders that are rooms of their own within their folder, as `store/local` is in `store`.
_ROOMS: Final = frozenset(
    {
        "policy/clients",
        "policy/cluster",
        "policy/events",
        "policy/fills",
        "policy/hosted",
        "policy/upstream",
        "policy/virtual",
        "server/admin",
        "server/fast",
        "server/peers",
        "server/registry",
        "store/hosted",
        "store/local",
        "store/cloud",
        "store/objects",
        "store/records",
        "upstream/credentials",
        "upstream/http",
    }
)
#: What every room may import.
_BELOW_ALL: Final = {
    "errors",
    "clock",
    "folders",
    "oci",
    "policy",
    "policy/cluster",
    "policy/events",
    "policy/fills",
    "policy/hosted",
    "ports",
    "rounds",
    "telemetry",
    "aio",
}
#: What each room, or file at the top of the package, may import of the package; itself is allowed.
_MAY_IMPORT: Final = {
    # leaves
    "errors": set[str](),
    "aio": set(),
    "clock": set(),
    "folders": set(),
    "heartbeat": set(),
    "imports": set(),
    "telemetry": set(),
    # pure
    "oci": {"errors"},
    "values": {"errors", "oci"},
    "policy": {"errors", "oci", "values"},
    "policy/hosted": {"errors", "oci", "policy", "values"},
    "policy/events": {"errors", "oci", "policy", "values"},
    "policy/fills": {"errors", "oci"},
    "policy/clients": {"errors", "oci"},
    "policy/cluster": {"errors", "oci"},
    "policy/upstream": {"errors", "oci"},
    "ports": {"oci", "policy", "policy/cluster", "policy/events", "policy/hosted"},
    "policy/virtual": {"errors", "oci", "policy"},
    # background work, which logs its errors and keeps locks
    "rounds": {"aio", "errors", "ports", "telemetry"},
    # whom work is done for: what asks upstream and what keeps callers apart read it
    "caller": {"oci"},
    # adapters: never each other, nor what uses them
    "store": _BELOW_ALL,
    "store/records": _BELOW_ALL | {"values"},
    "store/local": _BELOW_ALL | {"values", "store/records"},
    "store/hosted": _BELOW_ALL | {"values", "store/local", "store/records"},
    "store/cloud": _BELOW_ALL,
    "store/objects": _BELOW_ALL | {"values", "store/local", "store/records"},
    "index": _BELOW_ALL,
    "leases": _BELOW_ALL,
    "access": _BELOW_ALL | {"values"},
    "upstream/http": _BELOW_ALL | {"policy/upstream"},
    "upstream/credentials": _BELOW_ALL | {"policy/upstream", "caller", "upstream/http"},
    "peers": _BELOW_ALL | {"policy/upstream", "upstream/http"},
    "upstream": _BELOW_ALL | {"policy/upstream", "caller", "upstream/http", "upstream/credentials"},
    # what the product does
    "graph": _BELOW_ALL | {"values"},
    "trust": _BELOW_ALL,
    "fills": _BELOW_ALL | {"graph", "caller", "policy/cluster"},
    "intake": _BELOW_ALL | {"graph"},
    "bucket_cache": _BELOW_ALL | {"graph"},
    "eviction": _BELOW_ALL | {"values", "graph", "intake"},
    "hosting": _BELOW_ALL | {"values", "graph", "intake"},
    "events": _BELOW_ALL | {"values"},
    "collection": _BELOW_ALL | {"values", "graph", "hosting"},
    "migration": _BELOW_ALL,
    "retention": _BELOW_ALL | {"values", "graph", "eviction", "hosting", "collection"},
    "repository": _BELOW_ALL
    | {
        "values",
        "graph",
        "fills",
        "hosting",
        "intake",
        "trust",
        "caller",
        "policy/upstream",
    },
    "virtual": _BELOW_ALL | {"policy/virtual", "repository"},
    "inspect": _BELOW_ALL | {"values", "graph", "eviction", "repository"},
    "prefetch": _BELOW_ALL | {"values", "graph", "repository"},
    "replication": _BELOW_ALL | {"values", "graph", "hosting", "repository", "prefetch"},
    "bundles": _BELOW_ALL | {"values", "graph", "fills", "intake"},
    # HTTP in front of it
    "server": {"rounds", "telemetry", "server/registry"},
    "server/peers": _BELOW_ALL | {"peers", "repository", "server/registry"},
    "server/fast": _BELOW_ALL | {"inspect"},
    "server/registry": _BELOW_ALL
    | {
        "access",
        "caller",
        "inspect",
        "policy/clients",
        "policy/virtual",
        "repository",
        "server/fast",
        "trust",
        "virtual",
    },
    "server/admin": _BELOW_ALL
    | {
        "values",
        "collection",
        "events",
        "eviction",
        "fills",
        "graph",
        "hosting",
        "inspect",
        "prefetch",
        "replication",
        "retention",
        "server/registry",
    },
    # machines that pull
    "nodes": {"errors", "folders", "oci", "policy", "policy/upstream", "values"},
}

#: Libraries that only some parts may know.
_ONLY_IN: Final = {
    "aiohttp": {"server", "upstream", "access", "peers", "process"},
    "aiohttp.web": {"server", "process"},
    "aiocache": {"aio"},
    "aiosqlite": {"index"},
    "sqlite3": {"index"},
    "redis": {"index", "aio"},
    "obstore": {"store", "app"},
    "google": {"upstream"},
    "botocore": {"upstream"},
    "requests": {"upstream"},
    "prometheus_client": {"telemetry", "server"},
    "structlog": {"telemetry"},
    "opentelemetry": {"telemetry"},
    "yaml": {"prefetch", "nodes"},
    "cryptography": {"bundles", "access", "trust", "nodes"},
    "bcrypt": {"access"},
    "jwt": {"access"},
    "cronsim": {"policy"},
    "semantic_version": {"values"},
    "re2": {"values"},
    "pydantic": {"config", "policy", "prefetch", "replication", "server", "values"},
    "pydantic_settings": {"config"},
    "typer": {"cli"},
    "rich": {"cli"},
    "uvloop": {"process"},
    "mirror.config": {"app", "cli", "config", "process"},
    "mirror.app": {"app", "cli", "process"},
    "mirror.telemetry.tracing": {"app"},
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
        part = _room(file.relative_to(_ROOT / "mirror").with_suffix("").parts)
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                yield from ((part, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{file}: imports are absolute"
                yield from ((part, f"{node.module}.{alias.name}") for alias in node.names)


def _room(parts: tuple[str, ...]) -> str:
    """Of a module, given by its path below the package."""
    inner = "/".join(parts[:2])
    return inner if inner in _ROOMS else parts[0]


def _within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def test_folders_import_only_what_lies_below() -> None:
    """Each room imports no more of the package than the drawing says; nothing is left out of the drawing."""
    used: dict[str, set[str]] = {}
    for part, name in _imports():
        if _within(name, "mirror"):
            used.setdefault(part, set()).add(_room(tuple(name.split(".")[1:])) if "." in name else "")
    composing = {"__init__", "__main__", "app", "cli", "config", "process"}
    rooms = {_room(tuple(module.split(".")[1:])) for module in _modules() if "." in module}
    assert rooms - composing == _MAY_IMPORT.keys()
    for part, allowed in _MAY_IMPORT.items():
        assert used.get(part, set()) <= {part, *allowed}, part


def test_the_drawing_has_no_circle() -> None:
    """No room may import, by way of others, what imports it."""
    above: dict[str, set[str]] = {}
    for part in _MAY_IMPORT:
        seen, waiting = set[str](), [part]
        while waiting:
            for below in _MAY_IMPORT[waiting.pop()] - seen:
                seen.add(below)
                waiting.append(below)
        above[part] = seen
    assert [part for part, below in above.items() if part in below] == []


def test_no_folder_has_too_many_files() -> None:
    """A folder of more than twenty files is several rooms."""
    folders = {folder for folder in (_ROOT / "mirror").rglob("*") if folder.is_dir() and folder.name != "__pycache__"}
    files = {folder: len([*folder.glob("*.py")]) - 1 for folder in folders}
    assert {str(folder.relative_to(_ROOT)): count for folder, count in files.items() if count > _MOST_FILES} == {}


@pytest.mark.parametrize("library", _ONLY_IN)
def test_libraries_are_known_in_few_places(library: str) -> None:
    """A library is met at one border only, so that it can be replaced there."""
    assert {part.partition("/")[0] for part, name in _imports() if _within(name, library)} <= _ONLY_IN[library]


@pytest.mark.parametrize("folder", ["oci", "policy", "values"])
def test_pure_folders_do_nothing(folder: str) -> None:
    """What decides does not act: no loop, no thread, no file, no socket, no clock."""
    acting = ("asyncio", "threading", "concurrent", "socket", "os", "pathlib", "subprocess", "time", "random", "shutil")
    assert not [
        name
        for part, name in _imports()
        if part.partition("/")[0] == folder and any(_within(name, one) for one in acting)
    ]


def _run_at_import(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports that a module makes while it is imported: not those within functions, nor those for mypy alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            for other in child.orelse:
                yield from _run_at_import(other)
        elif not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _run_at_import(child)


def _needed(module: str, tree: ast.Module, modules: Collection[str]) -> set[str]:
    """The modules of the package that have to be whole before this one can be."""
    named = set[str]()
    for node in _run_at_import(tree):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        else:
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            named |= {name if name in modules else str(node.module) for name in names}
    # the packages around a module are imported before it; those around this one have begun already
    around = {package for name in named for package in _packages(name)} - {*_packages(module), module}
    return {name for name in named | around if name in modules}


def _packages(module: str) -> Iterator[str]:
    parts = module.split(".")
    return (".".join(parts[:length]) for length in range(1, len(parts)))


def _circle(trees: Mapping[str, ast.Module]) -> list[str]:
    """Modules of which each imports the one before it; empty if there is no circle."""
    try:
        TopologicalSorter({module: _needed(module, tree, trees) for module, tree in trees.items()}).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_every_module_can_be_imported_alone() -> None:
    """No module needs another one to be imported before it: there are no circles."""
    files = {module: _ROOT.joinpath(*module.split(".")) for module in _modules()}
    texts = {
        module: (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
        for module, path in files.items()
    }
    assert _circle({module: ast.parse(text) for module, text in texts.items()}) == []


@pytest.mark.parametrize(
    ("texts", "circle"),
    [
        ({"m": "", "m.a": "from m.b import x", "m.b": "from m.a import y"}, {"m.a", "m.b"}),
        ({"m": "", "m.a": "from m.b import x", "m.b": "def f():\n    from m.a import y"}, set()),
        ({"m": "", "m.a": "from m.b import x", "m.b": "if TYPE_CHECKING:\n    from m.a import y"}, set()),
        ({"m": "", "m.a": "try:\n    import m.b\nfinally:\n    pass", "m.b": "from m import a"}, {"m.a", "m.b"}),
        # a package that is made of its modules
        ({"m": "", "m.p": "from m.p.a import x", "m.p.a": "from m.p.b import y", "m.p.b": ""}, set()),
        ({"m": "", "m.p": "from m.p.a import x", "m.p.a": "from m.p import y"}, {"m.p", "m.p.a"}),
        # whoever imports a module of a package imports the package first
        ({"m": "", "m.p": "from m.a import x", "m.p.b": "", "m.a": "from m.p.b import y"}, {"m.p", "m.a"}),
    ],
)
def test_circles_of_imports_are_found(texts: Mapping[str, str], circle: set[str]) -> None:
    """The same with modules that do not exist: what is found is what Python could not import."""
    assert {*_circle({module: ast.parse(text) for module, text in texts.items()})} == circle
