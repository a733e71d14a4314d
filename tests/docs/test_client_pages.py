"""What the pages about clients say to write by hand is what the doctor looks for."""

from __future__ import annotations

import pytest

from mirror.nodes.clients import CLIENTS
from mirror.nodes.plan import MirrorUrl, Wanted
from tests.support.client_pages import MIRROR, shown_files
from tests.support.node_files import GivenFiles

_PAGE_OF = {"docker": "docker", "containerd": "containerd", "podman": "podman", "crio": "podman"}
_PAGE_OF |= {"buildkit": "buildkit", "k3s": "k3s"}


@pytest.mark.parametrize("client", _PAGE_OF)
def test_what_is_written_by_hand_leads_to_the_mirror(client: str) -> None:
    """With the page's files the client asks the mirror first, and there is nothing that keeps it from doing so."""
    files = GivenFiles(shown_files(_PAGE_OF[client]))
    asked = CLIENTS[client].asks(files, "docker.io")
    assert MirrorUrl.parse(f"http://{MIRROR}").is_at(asked.endpoints[0])
    assert asked.trouble == ()


@pytest.mark.parametrize("client", _PAGE_OF)
def test_the_command_has_nothing_to_add(client: str) -> None:
    """`mirror configure` for the same registries leads the client to the same places."""
    files = GivenFiles(shown_files(_PAGE_OF[client]))
    registries = ("docker.io",) if client == "docker" else ()
    plan = CLIENTS[client].plan(GivenFiles({}), Wanted(MirrorUrl.parse(f"http://{MIRROR}"), registries, ("docker.io",)))
    written = GivenFiles({change.path: change.content for change in plan.changes})
    assert CLIENTS[client].asks(files, "docker.io") == CLIENTS[client].asks(written, "docker.io")


def test_rke2_is_told_likewise() -> None:
    """The same file in another folder."""
    text = shown_files("k3s")["/etc/rancher/k3s/registries.yaml"]
    asked = CLIENTS["rke2"].asks(GivenFiles({"/etc/rancher/rke2/registries.yaml": text}), "quay.io")
    assert asked.endpoints == (f"http://{MIRROR}",)
