"""The configuration of every client as it would be on a machine where there is none yet: to be shown and copied.

It is what `plan` says of a machine without files, so it cannot differ from what `mirror configure` writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from mirror.nodes.clients import CLIENTS
from mirror.nodes.plan import Change, Client, FilePlan, MirrorUrl, Wanted

__all__ = ["Offer", "offered"]

_HUB: Final = "docker.io"


@dataclass(frozen=True, slots=True)
class Offer:
    """What one client needs. `files` are whole, `command` does the same on the client's machine."""

    client: str
    command: str
    files: tuple[Change, ...]
    notes: tuple[str, ...]
    seen: str


class _Nothing:
    """A machine without any of the clients' files."""

    def text(self, path: str) -> str | None:
        """There is none."""

    def names(self, folder: str) -> Sequence[str]:
        """Nothing is there."""
        return ()


def offered(mirror: MirrorUrl, registries: Sequence[str], public: Sequence[str]) -> Iterator[Offer]:
    """For every client that can use one of these `registries`, which are those that the mirror is configured for.

    `public` are those that `mirror configure` means where it is told none.
    """
    named = [name for name in registries if not name.startswith("*.")]
    for client in CLIENTS.values():
        if client.name == "docker" and _HUB not in registries:
            continue
        plan = client.plan(_Nothing(), Wanted(mirror, public=tuple(registries)))
        # where the client is told of each registry, the command must name those that it would not think of itself
        words = [] if _is_told_of_all(client, plan, mirror) or set(registries) == set(public) else named
        options = "".join(f" --registry {name}" for name in words)
        command = f"mirror configure {client.name} {mirror}{options} --apply"
        yield Offer(client.name, command, plan.changes, plan.notes, plan.seen)


def _is_told_of_all(client: Client, plan: FilePlan, mirror: MirrorUrl) -> bool:
    """Whether its files are the same whichever registries there are."""
    return client.plan(_Nothing(), Wanted(mirror)).changes == plan.changes
