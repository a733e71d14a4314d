"""Text that registries, layouts and people have written: shown as it is, obeyed by no terminal, parsed by nothing."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from mirror.oci.manifest import OCI_INDEX, OCI_MANIFEST, Descriptor
from tests.support.command import Done
from tests.support.command import mirror as command
from tests.support.stocked import Stocked, write_settings

_ODD = "\x1b[2J\x1b]0;title\x07[/x]\u202e\ud800\n\x9bforged: yes"
_SHOWN = "\\x1b[2J\\x1b]0;title\\x07[/x]\\u202e\\ud800\\n\\x9bforged: yes"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_NAME = "library/app"


@pytest.fixture
def stocked(tmp_path: Path) -> Stocked:
    """A store with an image whose index, config, types and annotations say odd things, and with what refers to it."""
    store = Stocked(tmp_path / "store")
    layer = store.blob(b"layer")
    odd: dict[str, Any] = {"os": _ODD, "architecture": "[bold]", "variant": "\x1b[31m"}
    child = _image(store, layer, odd)
    listed = {**child.to_json(), "platform": odd, "artifactType": _ODD, "annotations": {"a": _ODD}}
    root = store.manifest(_NAME, {"manifests": [listed]}, OCI_INDEX)
    store.tag(_NAME, "v1", root)
    store.tag(_NAME, "plain", _image(store, layer, {**odd, "architecture": "[/bold]"}))
    about = {"config": {**layer, "mediaType": _ODD}, "layers": [], "subject": root.to_json(), "artifactType": _ODD}
    store.manifest(_NAME, about, OCI_MANIFEST)
    return store


def _image(store: Stocked, layer: dict[str, Any], platform: dict[str, Any]) -> Descriptor:
    config = {**store.blob(json.dumps(platform).encode()), "mediaType": _CONFIG}
    return store.manifest(_NAME, {"config": config, "layers": [{**layer, "mediaType": _ODD}]}, OCI_MANIFEST)


def _is_plain(done: Done) -> None:
    """Of both outputs: each line can be written, and no character of it means anything to a terminal."""
    for line in (done.out + done.err).splitlines():
        assert line.encode().decode().isprintable(), line


@pytest.mark.parametrize(
    "words",
    [
        ["ls"],
        ["ls", "--json"],
        ["show", "docker.io/library/app:v1"],
        ["show", "docker.io/library/app:v1", "--json"],
        ["show", "docker.io/library/app:plain"],
        ["why", "docker.io/library/app:v1"],
        ["why", "docker.io/library/app:v1", "--json"],
        ["verify", "docker.io/library/app:v1"],
        ["inventory"],
        ["evict", "--dry-run"],
        ["history", "docker.io/library/app:v1"],
        ["export", "docker.io/library/app:v1", "--output", "OUT", "--referrers"],
    ],
    ids=" ".join,
)
def test_what_an_image_says_of_itself(words: list[str], stocked: Stocked, tmp_path: Path) -> None:
    """Platforms, types and annotations, by every command that reads them."""
    given = [str(tmp_path / "out.tar") if word == "OUT" else word for word in words]
    done = command(*given, "--config", write_settings(stocked.root))
    assert done.status == 0, done
    _is_plain(done)
    if words[0] in ("ls", "show"):
        shown = json.dumps(_SHOWN)[1:-1] if "--json" in words else _SHOWN
        assert shown.split("[/x]", maxsplit=1)[0] in done.out


def test_what_people_write(stocked: Stocked) -> None:
    """Reasons of pins and freezes, in tables and in messages about them."""
    settings = write_settings(stocked.root)
    reason = _ODD.replace("\ud800", "")
    for words in (
        ["pin", "docker.io/library/app:v1", "--reason", reason],
        ["pins"],
        ["pins", "--json"],
        ["show", "docker.io/library/app:v1"],
        ["why", "docker.io/library/app:v1"],
        ["freeze", "docker.io/library/app:v1", "--reason", reason],
        ["freezes"],
        ["freezes", "--json"],
        ["show", "docker.io/library/app:v1"],
        ["why", "docker.io/library/app:v1"],
        ["ls"],
        ["unpin", "docker.io/library/app:v1"],
    ):
        done = command(*words, "--config", settings)
        assert (done.status, done.err) == (0, ""), (words, done)
        _is_plain(done)


@pytest.mark.parametrize(
    "words",
    [
        ["ls", _ODD.replace("\ud800", "")],
        ["show", "[/x]\x1b[2J"],
        ["why", "sha256:\x1b[2J"],
        ["export", "\x1b[2J", "--output", "x"],
        ["configure", "\x1b[2J[/x]"],
        ["jobs", "\x1b[2J[/x]"],
    ],
)
def test_what_is_typed(words: list[str], stocked: Stocked) -> None:
    """Errors repeat it."""
    settings = str(write_settings(stocked.root))
    _is_plain(command(*words, *([] if words[0] == "configure" else ["--config", settings])))


def test_platforms_of_a_nested_index_stand_once(tmp_path: Path) -> None:
    """In lists; `show` has a line for each manifest."""
    store = Stocked(tmp_path / "store")
    children = [
        store.index(_NAME, {"amd64": store.image(_NAME, [name]), "arm64": store.image(_NAME, [name, name])})
        for name in (b"one", b"two")
    ]
    store.tag(_NAME, "v1", store.manifest(_NAME, {"manifests": [one.to_json() for one in children]}, OCI_INDEX))
    settings = write_settings(store.root)
    [listed] = [line for line in command("ls", "-c", settings).out.splitlines() if "app:v1" in line]
    assert listed.split()[-1] == "linux/amd64,linux/arm64"
    assert json.loads(command("ls", "--json", "-c", settings).out)["platforms"] == ["linux/amd64", "linux/arm64"]
    shown = command("show", "docker.io/library/app:v1", "-c", settings).out
    assert (shown.count("linux/amd64"), shown.count("linux/arm64")) == (2, 2)


def test_commands_show_text_in_one_way() -> None:
    """No command prints, or makes a table or a progress bar, but by the functions that know what text is."""
    folder = Path(__file__).parents[2] / "mirror/cli"
    found = {
        (path.name, call.func.id)
        for path in folder.glob("*.py")
        if path.name != "base.py"
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
        if call.func.id in ("print", "Table", "TextColumn")
    }
    assert found == set()
