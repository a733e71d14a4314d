"""The state of a tag: to what it has pointed, how much of that is here, and what it answers now.

Read from the disk alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from mirror.graph.closure import Closure, read_closure
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.history import AgeRule, Choice, choose, recalled
from mirror.policy.records import Freeze, Sighting
from mirror.ports import Blobs, Catalog, Freezes


@dataclass(frozen=True, slots=True)
class TagState:
    """One sighting of a tag. `closure` is the content of its image; `answers` is true if the tag answers it now."""

    sighting: Sighting
    closure: Closure
    answers: bool
    frozen: bool
    held_back: bool

    @property
    def here(self) -> bool:
        """True if the manifest or index itself is here."""
        return any(node.present for node in self.closure.nodes if node.digest == self.closure.root)


@dataclass(frozen=True, slots=True)
class TagView:
    """The state of a tag, with its sightings newest first. `choice` is what the minimum age chooses, None if the tag
    was never seen.

    `dropped` is true if the tag has no record: upstream no longer has it, it was purged, or it was never seen.
    """

    repo: Repo
    tag: str
    standings: tuple[TagState, ...]
    freeze: Freeze | None
    choice: Choice | None
    dropped: bool

    @property
    def answers(self) -> Digest | None:
        """The digest that the tag answers now, or None if it does not answer from the disk."""
        if self.freeze:
            return self.freeze.digest
        return self.choice.serve.digest if self.choice and self.choice.serve and not self.dropped else None


def read_standing(
    store: Blobs, catalog: Catalog, freezes: Freezes, repo: Repo, tag: str, rule: AgeRule, now: float
) -> TagView:
    """Blocking: reads the state of a tag. `now` is in epoch seconds. Raises `StoreError` if the freeze, a record or a
    manifest of the tag cannot be read.
    """
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
        root = one.descriptor
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
