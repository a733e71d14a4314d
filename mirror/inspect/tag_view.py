"""How a tag stands: what it has pointed to, what of that is here, and what it answers now. Read from the disk alone."""

from __future__ import annotations

from dataclasses import dataclass

from mirror.graph.closure import Closure, read_closure
from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor
from mirror.oci.reference import Repo
from mirror.policy.history import AgeRule, Choice, choose, recalled
from mirror.policy.records import Freeze, Sighting
from mirror.ports import BlobStore, Catalog, Freezes

__all__ = ["TagState", "TagView", "read_standing"]


@dataclass(frozen=True, slots=True)
class TagState:
    """One sighting. `closure` is what is here of its image; `answers`: it is what the tag answers now."""

    sighting: Sighting
    closure: Closure
    answers: bool
    frozen: bool
    held_back: bool

    @property
    def here(self) -> bool:
        """Whether the manifest or index itself is here."""
        return any(node.present for node in self.closure.nodes if node.digest == self.closure.root)


@dataclass(frozen=True, slots=True)
class TagView:
    """All of a tag, sightings newest first. `choice` is the minimum age's; None where nothing was ever seen.

    `dropped`: upstream has no such tag any more.
    """

    repo: Repo
    tag: str
    standings: tuple[TagState, ...]
    freeze: Freeze | None
    choice: Choice | None
    dropped: bool

    @property
    def answers(self) -> Digest | None:
        """What the tag answers now, if it answers at all."""
        if self.freeze:
            return self.freeze.digest
        return self.choice.serve.digest if self.choice and self.choice.serve and not self.dropped else None


def read_standing(
    store: BlobStore, catalog: Catalog, freezes: Freezes, repo: Repo, tag: str, rule: AgeRule, now: float
) -> TagView:
    """Blocking. Raises `StoreError` where a freeze cannot be read."""
    freeze = freezes.get(repo, tag)
    record = catalog.get_tag(repo, tag)
    history = recalled(catalog.get_history(repo, tag), record, now)

    def here_since(digest: Digest) -> float | None:
        manifest = catalog.get_manifest(repo, digest)
        return None if manifest is None else manifest.fetched_at

    choice = choose(history, rule, now, here_since) if history else None
    served = choice.serve if choice and record else None
    standings = []
    for number, one in enumerate(history):
        root = Descriptor(one.media_type, one.digest, one.size)
        standings.append(
            TagState(
                sighting=one,
                closure=read_closure(store, catalog, repo, root),
                answers=one.digest == freeze.digest if freeze else one is served,
                frozen=freeze is not None and one.digest == freeze.digest,
                held_back=choice is not None
                and choice.held_back
                and number > (history.index(choice.serve) if choice.serve else -1),
            )
        )
    return TagView(repo, tag, tuple(reversed(standings)), freeze, choice, record is None)
