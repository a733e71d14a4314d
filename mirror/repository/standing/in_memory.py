"""Answers that come from what this process remembers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest
from mirror.oci.reference import Reference, Repo
from mirror.repository.answers import ManifestAnswer, Outcome
from mirror.repository.caches import LOOK_EVERY, CachedTag, Caches
from mirror.repository.standing.lasting import LONGEST


@dataclass(slots=True, repr=False)
class InMemory:
    """An answer from `Caches`: a manifest, and the tag by which it was asked for (None: it was asked for by digest).

    It stands from `since` until `until` (epoch seconds), as long as `caches` has these very objects. They are looked up
    again only if the caches have changed at all.
    """

    caches: Caches
    repo: Repo
    tag: CachedTag | None
    manifest: Manifest
    since: float
    until: float
    touch: Callable[[Digest], None]
    _tags: int = field(init=False)
    _manifests: int = field(init=False)

    def __post_init__(self) -> None:
        self._tags, self._manifests = self.caches.tags.changes, self.caches.manifests.changes

    def __repr__(self) -> str:
        return f"<InMemory {self.repo}@{self.manifest.digest}>"

    @classmethod
    def of(
        cls,
        caches: Caches,
        repo: Repo,
        reference: Reference,
        answer: ManifestAnswer,
        touch: Callable[[Digest], None],
        *,
        checked: bool,
    ) -> InMemory | None:
        """Returns the standing of an answer; None if it is not one that the caches would give now. If `checked`, it
        stands only until the next time that the repository compares the manifest with the disk.
        """
        manifest, now = answer.manifest, caches.now()
        if answer.outcome is not Outcome.HIT or manifest is None:
            return None
        tag, until = None, now + LONGEST
        if isinstance(reference, str):
            tag = caches.tags.get((repo, reference))
            if tag is None or tag.outcome is not Outcome.HIT or not tag.since <= now < tag.until:
                return None
            if tag.record.digest != manifest.digest or tag.override is not answer.override:
                return None
            until = min(until, tag.until)
        if caches.manifests.get((repo, manifest.digest)) is not manifest:
            return None
        if checked:
            at = caches.checked.get(manifest.digest)
            if at is None or not 0 <= now - at < LOOK_EVERY:
                return None
            until = min(until, at + LOOK_EVERY)
        return cls(caches, repo, tag, manifest, now, until, touch)

    def stands(self) -> bool:
        """See `Standing`."""
        caches = self.caches
        return self.since <= caches.now() < self.until and (
            (self._tags == caches.tags.changes and self._manifests == caches.manifests.changes) or self._is_same()
        )

    def _is_same(self) -> bool:
        caches, tag = self.caches, self.tag
        if tag is not None and caches.tags.get((self.repo, tag.record.tag)) is not tag:
            return False
        if caches.manifests.get((self.repo, self.manifest.digest)) is not self.manifest:
            return False
        self._tags, self._manifests = caches.tags.changes, caches.manifests.changes
        return True

    def used(self) -> None:
        """See `Standing`."""
        self.touch(self.manifest.digest)
