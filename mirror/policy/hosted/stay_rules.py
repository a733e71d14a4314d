"""The configured rules by which images stay where they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from mirror.policy.hosted.immutability import ImmutableTags
from mirror.policy.pins import PinRule


@dataclass(frozen=True, slots=True)
class StayRules:
    """`pins` keep cached images from eviction, `immutable` says which tags of hosted ones neither move nor go."""

    pins: Sequence[PinRule] = ()
    immutable: ImmutableTags = field(default_factory=ImmutableTags)
