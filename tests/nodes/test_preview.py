"""The configuration that is shown to be copied is the one that `mirror configure` writes on a machine without any."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mirror.cli import every_command
from mirror.config import PUBLIC
from mirror.nodes.clients import CLIENTS
from mirror.nodes.plan import MirrorUrl
from mirror.nodes.preview import offered

_PUBLIC = tuple(str(one["name"]) for one in PUBLIC)
_URL = MirrorUrl.parse("http://mirror.internal:5000")
_OWN = ("docker.io", "registry.corp:5443", "*.pkg.dev")


@pytest.mark.parametrize("hosted", [False, True], ids=["", "hosted"])
@pytest.mark.parametrize("registries", [_PUBLIC, _OWN])
@pytest.mark.parametrize("client", CLIENTS)
def test_the_command_writes_the_files(client: str, registries: tuple[str, ...], hosted: bool, tmp_path: Path) -> None:
    """The command that is shown beside the files, carried out on an empty machine, writes exactly them."""
    [offer] = [one for one in offered(_URL, registries, _PUBLIC, hosted=hosted) if one.client == client]
    assert ("--hosted" in offer.command) == (hosted and client not in ("docker", "buildkit"))
    program, *words = shlex.split(offer.command)
    done = CliRunner().invoke(every_command(), [*words, "--root", str(tmp_path)], catch_exceptions=False)
    assert (program, done.exit_code) == ("mirror", 0), done.output
    written = {f"/{path.relative_to(tmp_path)}": path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert written.pop(f"{CLIENTS[client].home}/mirror-configure.json")
    assert written == {one.path: one.content for one in offer.files}


def test_docker_is_not_offered_what_it_cannot_use() -> None:
    """It uses mirrors for Docker Hub alone, so not this one where that is not configured."""
    names = [one.client for one in offered(_URL, ("ghcr.io",), _PUBLIC)]
    assert names == [name for name in CLIENTS if name != "docker"]
