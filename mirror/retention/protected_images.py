"""What stays whatever the rules of retention say: pinned images, frozen tags, immutable tags.

A damaged pin or freeze still holds if it is known what it is about. If not, or if they cannot be listed, nothing is
known to be unprotected, and nothing may go.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mirror.eviction.record_owners import UnreadableRecordOwners
from mirror.oci.digest import Digest
from mirror.oci.reference import Reference, Repo
from mirror.policy.hosted.immutability import ImmutableTags
from mirror.policy.pins import PinRule, rule_for
from mirror.ports import Catalog, Freezes, Pins


@dataclass(frozen=True, slots=True)
class Protected:
    """What is protected at one moment, and why."""

    images: dict[tuple[Repo, Reference], str] = field(default_factory=dict)
    #: Repositories with a freeze of which nobody knows the digest.
    repositories: dict[Repo, str] = field(default_factory=dict)
    pin_rules: Sequence[PinRule] = ()
    immutable: ImmutableTags = field(default_factory=ImmutableTags)

    def tag(self, repo: Repo, tag: str) -> str:
        """Why a tag stays; empty if nothing protects it."""
        if whole := self.repositories.get(repo):
            return whole
        if found := self.images.get((repo, tag)):
            return found
        if rule := rule_for(self.pin_rules, repo, tag):
            return f"pinned by the rule {rule.match}"
        if immutable := self.immutable.rule(repo, tag):
            return f"immutable: {immutable}"
        return ""

    def manifest(self, repo: Repo, digest: Digest) -> str:
        """Why a manifest stays; empty if nothing protects it by its digest."""
        return self.repositories.get(repo) or self.images.get((repo, digest), "")


class ProtectedImages:
    """Reads pins and freezes. May be called from any thread."""

    def __init__(
        self,
        catalog: Catalog,
        pins: Pins,
        pin_rules: Sequence[PinRule],
        freezes: Freezes,
        immutable: ImmutableTags,
        now: Callable[[], float],
    ) -> None:
        """`now` is in epoch seconds."""
        self._pins = pins
        self._pin_rules = tuple(pin_rules)
        self._freezes = freezes
        self._immutable = immutable
        self._now = now
        self._owners = UnreadableRecordOwners(catalog)

    def __repr__(self) -> str:
        return f"<ProtectedImages rules={len(self._pin_rules)}>"

    def look(self) -> Protected:
        """Blocking: returns what is protected now. Raises `StoreError` if that is not certain."""
        pins, unread_pins = self._pins.look()
        freezes, unread_freezes = self._freezes.look()
        owners = self._owners.of([*unread_pins, *unread_freezes])
        now = self._now()
        images: dict[tuple[Repo, Reference], str] = {
            (pin.repo, pin.reference): f"pinned{f': {pin.reason}' if pin.reason else ''}"
            for pin in pins
            if pin.is_active(now)
        }
        for freeze in freezes:
            # a frozen tag answers with this digest, whatever its record says
            images[freeze.repo, freeze.tag] = images[freeze.repo, freeze.digest] = f"the tag {freeze.tag} is frozen"
        repositories: dict[Repo, str] = {}
        for record, (repo, reference) in owners.items():
            if record.kind == "freezes":
                repositories[repo] = f"{record.file}, a freeze, cannot be read"
            else:
                images[repo, reference] = f"{record.file}, its pin, cannot be read"
        return Protected(images, repositories, self._pin_rules, self._immutable)
