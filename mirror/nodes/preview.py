"""The configuration of every client, as `mirror configure` writes it on a machine without any, to be shown and copied.

It comes from the clients' own `plan` functions, so it cannot differ from what `mirror configure` writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from mirror.nodes.clients import CLIENTS
from mirror.nodes.plan import Change, Client, MirrorUrl, Wanted

_HUB: Final = "docker.io"


@dataclass(frozen=True, slots=True)
class Offer:
    """The configuration of one client. `files` are complete; `command` does the same on the client's machine.

    `seen` says when the client notices changes for which nothing has to be reloaded.
    """

    client: str
    command: str
    files: tuple[Change, ...]
    notes: tuple[str, ...]
    seen: str


class _Nothing:
    """The `Files` of a machine without any files."""

    def text(self, path: str) -> str | None:
        """None: there are no files."""

    def names(self, folder: str) -> Sequence[str]:
        """Empty: there are no files."""
        return ()


def offered(
    mirror: MirrorUrl, registries: Sequence[str], public: Sequence[str], *, hosted: bool = False
) -> Iterator[Offer]:
    """Yields the configuration of each client that can use one of `registries`, which are those configured at the
    mirror.

    `public` are the registries that `mirror configure` takes if it is given no `--registry`. `hosted`: the mirror hosts
    images, which have its own name.
    """
    named = [name for name in registries if not name.startswith("*.")]
    for client in CLIENTS.values():
        if client.name == "docker" and _HUB not in registries:
            continue
        cached = Wanted(mirror, public=tuple(registries))
        plan = client.plan(_Nothing(), replace(cached, own_name=hosted))
        # a client whose files list the registries needs --registry if they are not the default ones
        words = [] if _names_no_registries(client, cached) or set(registries) == set(public) else named
        options = "".join(f" --registry {name}" for name in words)
        if plan.changes != client.plan(_Nothing(), cached).changes:
            options += " --hosted"
        command = f"mirror configure {client.name} {mirror}{options} --apply"
        yield Offer(client.name, command, plan.changes, plan.notes, plan.seen)


def _names_no_registries(client: Client, wanted: Wanted) -> bool:
    """True if the client's files are the same for any set of registries."""
    plan = client.plan(_Nothing(), replace(wanted, public=()))
    return plan.changes == client.plan(_Nothing(), wanted).changes
