"""The state of a tag: to what it has pointed, how much of that is here, and what it answers now.

Read from the disk alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from mirror.graph.closure import Closure, read_closure
from mirror.graph.manifests import here_since
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
    was never seen, or is forgotten.

    `dropped` is true if the tag has no record: upstream no longer has it, it was purged, it is forgotten, or it
    was never seen.
    """

    repo: Repo
    tag: str
    states: tuple[TagState, ...]
    freeze: Freeze | None
    choice: Choice | None
    dropped: bool

    @property
    def answers(self) -> Digest | None:
        """The digest that the tag answers now, or None if it does not answer from the disk."""
        if self.freeze:
            return self.freeze.digest
        return self.choice.serve.digest if self.choice and self.choice.serve and not self.dropped else None


def read_tag(
    store: Blobs, catalog: Catalog, freezes: Freezes, repo: Repo, tag: str, rule: AgeRule, now: float
) -> TagView:
    """Blocking: reads the state of a tag. `now` is in epoch seconds. Raises `StoreError` if the freeze, a record or a
    manifest of the tag cannot be read.
    """
    freeze = freezes.get(repo, tag)
    record = catalog.get_tag(repo, tag)
    history = recalled(catalog.get_history(repo, tag), record, now)
    choice = choose(history, rule, now, here_since(catalog, repo)) if history else None
    served = choice.serve if choice and record else None
    states = []
    for number, sighting in enumerate(history):
        root = sighting.descriptor
        states.append(
            TagState(
                sighting=sighting,
                closure=read_closure(store, catalog, repo, root),
                answers=sighting.digest == freeze.digest if freeze else sighting is served,
                frozen=freeze is not None and sighting.digest == freeze.digest,
                held_back=choice is not None
                and choice.held_back
                and number > (history.index(choice.serve) if choice.serve else -1),
            )
        )
    return TagView(repo, tag, tuple(reversed(states)), freeze, choice, record is None)
