"""What was measured, and what it is held against."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from bench.systems import MIRROR, MIRROR_ON_DISK, NGINX, ONE_MIRROR, REGISTRY

Group = Literal["warm", "cold", "stampede", "slow", "small", "stalled", "push", "bucket", "replicas", "tls", "parallel"]


def quantile(values: Sequence[float], part: float) -> float:
    """Of sorted values; 0 where there are none."""
    return values[min(len(values) - 1, int(len(values) * part))] if values else 0.0


@dataclass(frozen=True, slots=True)
class Target:
    """The mirror's figure, divided by that of `against` unless that is None, is at least or at most `bound`.

    `plus` is the key of a figure of work that only the mirror does: it is added to that of `against`.
    """

    against: str | None
    at_least: bool
    bound: float
    plus: str | None = None

    def __str__(self) -> str:
        sign = "≥" if self.at_least else "≤"
        if self.plus is not None:
            return f"{sign} {self.bound:g} × ({self.against} + SHA-256)"
        return f"{sign} {self.bound:g}" + (f" × {self.against}" if self.against else "")


@dataclass(frozen=True, slots=True)
class Figure:
    """One row of the table."""

    key: str
    group: Group
    title: str
    unit: str
    targets: tuple[Target, ...] = ()


def _at_least(bound: float, against: str) -> Target:
    return Target(against, True, bound)


def _at_most(bound: float, against: str | None = None) -> Target:
    return Target(against, False, bound)


def _with_hash(key: str) -> Target:
    """What nginx takes, the hash that it does not make, and a seventh more."""
    return Target(NGINX, False, 1.15, plus=key)


_SMALL: Final = (_at_least(0.9, NGINX), _at_least(30, REGISTRY))
_SMALL_CPU: Final = (_at_most(1.2, NGINX),)

FIGURES: Final[Sequence[Figure]] = (
    Figure("warm1.rate", "warm", "warm blob, 1 connection", "MiB/s", (_at_least(1.0, NGINX),)),
    Figure("warm1.cpu", "warm", "— its CPU", "s/GiB", (_at_most(1.2, NGINX),)),
    Figure("warm16.rate", "warm", "warm blob, 16 connections", "MiB/s", (_at_least(1.0, NGINX),)),
    Figure("warm16.cpu", "warm", "— its CPU", "s/GiB", (_at_most(1.2, NGINX),)),
    Figure("cold.rate", "cold", "cold blob", "MiB/s", (_at_least(1.0, NGINX), _at_least(1.0, REGISTRY))),
    Figure("cold.cpu", "cold", "— its CPU", "s/GiB", (_with_hash("cold.hash"), _at_most(0.4, REGISTRY))),
    Figure("cold.hash", "cold", "— SHA-256 alone", "s/GiB"),
    Figure("cold.upstream", "cold", "— upstream bytes", "× blob", (_at_most(1.0),)),
    Figure("limited.rate", "parallel", "cold blob, 40 MiB/s a connection", "MiB/s", (_at_least(3.3, NGINX),)),
    Figure("limited.cpu", "parallel", "— its CPU", "s/GiB"),
    Figure("limited.requests", "parallel", "— upstream requests", ""),
    Figure("limited.upstream", "parallel", "— upstream bytes", "× blob", (_at_most(1.0),)),
    Figure("unlimited.rate", "parallel", "the same, not limited", "MiB/s", (_at_least(0.95, NGINX),)),
    Figure("unlimited.cpu", "parallel", "— its CPU", "s/GiB"),
    Figure("unlimited.requests", "parallel", "— upstream requests", ""),
    Figure("unlimited.upstream", "parallel", "— upstream bytes", "× blob", (_at_most(1.0),)),
    Figure("stampede.seconds", "stampede", "100 clients, one cold blob", "s", (_at_most(1.1, NGINX),)),
    Figure("stampede.cpu", "stampede", "— CPU", "s"),
    Figure("stampede.first", "stampede", "— first byte, median", "ms", (_at_most(50),)),
    Figure("stampede.worst", "stampede", "— first byte, worst", "ms", (_at_most(50),)),
    Figure("stampede.warm", "stampede", "— first byte, worst, nginx having the blob", "ms", (_at_most(1.5, NGINX),)),
    Figure("stampede.requests", "stampede", "— upstream requests", ""),
    Figure("stampede.upstream", "stampede", "— upstream bytes", "× blob", (_at_most(1.0),)),
    Figure("slow.seconds", "slow", "the same, slow upstream", "s", (_at_most(1.1, NGINX),)),
    Figure("slow.first", "slow", "— first byte, median", "ms", (_at_most(50),)),
    Figure("slow.worst", "slow", "— first byte, worst", "ms", (_at_most(50),)),
    Figure("slow.upstream", "slow", "— upstream bytes", "× blob", (_at_most(1.0),)),
    Figure("tag.rate", "small", "manifest by tag", "req/s", _SMALL),
    Figure("tag.cpu", "small", "— its CPU", "µs/req", _SMALL_CPU),
    Figure("digest.rate", "small", "manifest by digest", "req/s", _SMALL),
    Figure("digest.cpu", "small", "— its CPU", "µs/req", _SMALL_CPU),
    Figure("head.rate", "small", "blob HEAD", "req/s", _SMALL),
    Figure("head.cpu", "small", "— its CPU", "µs/req", _SMALL_CPU),
    Figure("tlscold.rate", "tls", "cold blob from an HTTPS upstream", "MiB/s", (_at_least(1.0, NGINX),)),
    Figure("tlscold.cpu", "tls", "— its CPU", "s/GiB", (_with_hash("tlscold.hash"),)),
    Figure("tlscold.hash", "tls", "— SHA-256 alone", "s/GiB"),
    Figure("tlscold.upstream", "tls", "— upstream bytes", "× blob", (_at_most(1.0),)),
    Figure("tlswarm1.rate", "tls", "warm blob over TLS, 1 connection", "MiB/s", (_at_least(0.9, NGINX),)),
    Figure("tlswarm1.cpu", "tls", "— its CPU", "s/GiB"),
    Figure("tlswarm16.rate", "tls", "warm blob over TLS, 16 connections", "MiB/s", (_at_least(0.9, NGINX),)),
    Figure("tlswarm16.cpu", "tls", "— its CPU", "s/GiB"),
    Figure("tlscrowd.seconds", "tls", "100 clients over TLS, one cold blob", "s", (_at_most(1.1, NGINX),)),
    Figure("tlscrowd.cpu", "tls", "— CPU", "s"),
    Figure("tlscrowd.first", "tls", "— first byte, median", "ms"),
    Figure("tlscrowd.worst", "tls", "— first byte, worst", "ms"),
    Figure("tlscrowd.upstream", "tls", "— upstream bytes", "× blob", (_at_most(1.0),)),
    Figure("tlstag.rate", "tls", "manifest by tag over TLS", "req/s"),
    Figure("tlstag.cpu", "tls", "— its CPU", "µs/req"),
    Figure("tlsdigest.rate", "tls", "manifest by digest over TLS", "req/s"),
    Figure("tlsdigest.cpu", "tls", "— its CPU", "µs/req"),
    Figure("tlshead.rate", "tls", "blob HEAD over TLS", "req/s"),
    Figure("tlshead.cpu", "tls", "— its CPU", "µs/req"),
    Figure("push1.rate", "push", "push of one blob", "MiB/s", (_at_least(1.0, REGISTRY),)),
    Figure("push1.cpu", "push", "— its CPU", "s/GiB", (_at_most(0.4, REGISTRY),)),
    Figure("push1.floor", "push", "— receive, hash and write alone", "s/GiB"),
    Figure("push16.rate", "push", "16 pushes at once", "MiB/s", (_at_least(1.0, REGISTRY),)),
    Figure("push16.cpu", "push", "— their CPU", "s/GiB", (_at_most(0.4, REGISTRY),)),
    Figure("push16.floor", "push", "— receive, hash and write alone, 16 at once", "s/GiB"),
    Figure("pushes.rate", "push", "pushes of a small image", "images/s", (_at_least(1.0, REGISTRY),)),
    Figure("pushes.cpu", "push", "— CPU of each", "ms", (_at_most(1.0, REGISTRY),)),
    Figure("mount.rate", "push", "mounts of a layer", "mounts/s", (_at_least(1.0, REGISTRY),)),
    Figure("mount.cpu", "push", "— CPU of each", "ms", (_at_most(1.0, REGISTRY),)),
    Figure("bucketcold.rate", "bucket", "cold blob from a bucket", "MiB/s", (_at_least(1.0, NGINX),)),
    Figure("bucketcold.cpu", "bucket", "— its CPU", "s/GiB", (_at_most(1.5, NGINX),)),
    Figure("bucketcold.hash", "bucket", "— SHA-256 alone", "s/GiB"),
    Figure("bucketpush1.rate", "bucket", "push of one blob to a bucket", "MiB/s", (_at_least(0.9, REGISTRY),)),
    Figure("bucketpush1.cpu", "bucket", "— its CPU", "s/GiB", (_at_most(1.0, REGISTRY),)),
    Figure("bucketpush16.rate", "bucket", "16 pushes at once to a bucket", "MiB/s", (_at_least(1.0, REGISTRY),)),
    Figure("bucketpush16.cpu", "bucket", "— their CPU", "s/GiB", (_at_most(1.0, REGISTRY),)),
    Figure("bucketdigest.rate", "bucket", "cached manifest by digest", "req/s", (_at_least(0.95, MIRROR_ON_DISK),)),
    Figure("bucketdigest.cpu", "bucket", "— its CPU", "µs/req", (_at_most(1.05, MIRROR_ON_DISK),)),
    Figure("crowd.seconds", "replicas", "200 clients, one cold blob", "s"),
    Figure("crowd.first", "replicas", "— first byte, median", "ms", (_at_most(1.5, ONE_MIRROR),)),
    Figure("crowd.worst", "replicas", "— first byte, worst", "ms"),
    Figure("crowd.upstream", "replicas", "— upstream bytes", "× blob", (_at_most(1.0),)),
    Figure("blobs16.rate", "replicas", "16 cold blobs at once", "MiB/s"),
    Figure("blobs16.cpu", "replicas", "— their CPU", "s/GiB"),
    Figure("blobs16.upstream", "replicas", "— upstream bytes", "× blobs", (_at_most(1.0),)),
    Figure("hop.rate", "replicas", "a blob from another replica, or from upstream", "MiB/s"),
    Figure("hop.cpu", "replicas", "— its CPU", "s/GiB"),
    Figure("hop.first", "replicas", "— first byte", "ms"),
    Figure("hits.rate", "replicas", "manifest by digest, at all replicas", "req/s"),
    Figure("hits.cpu", "replicas", "— its CPU", "µs/req"),
    Figure("hostedtag.rate", "replicas", "hosted manifest by tag", "req/s"),
    Figure("hostedtag.cpu", "replicas", "— its CPU", "µs/req"),
    Figure("stalled.memory", "stalled", "memory of a stalled reader", "KiB", (_at_most(32),)),
)


@dataclass(slots=True)
class Results:
    """Values of every round by figure and system."""

    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def add(self, key: str, system: str, value: float) -> None:
        """One round's value."""
        if key not in {figure.key for figure in FIGURES}:
            raise KeyError(key)
        self.values.setdefault(key, {}).setdefault(system, []).append(value)

    def median(self, key: str, system: str) -> float | None:
        """None where it was not measured."""
        values = self.values.get(key, {}).get(system)
        return statistics.median(values) if values else None

    def spread(self, key: str, system: str) -> tuple[float, float] | None:
        """Lowest and highest value."""
        values = self.values.get(key, {}).get(system)
        return (min(values), max(values)) if values else None

    def ratio(self, key: str, against: str) -> float | None:
        """The mirror's median divided by another's."""
        mine, theirs = self.median(key, MIRROR), self.median(key, against)
        return mine / theirs if mine is not None and theirs else None

    def _of_both(self, key: str, target: Target) -> float | None:
        """The mirror's median divided by the other's, with what the other does not do."""
        mine, theirs = self.median(key, MIRROR), self.median(key, target.against or "")
        alone = self.median(target.plus, MIRROR) if target.plus else 0.0
        return mine / (theirs + alone) if mine is not None and theirs and alone is not None else None

    def met(self, figure: Figure) -> bool | None:
        """Whether every target of a row is met; None where there is none or nothing to compare with."""
        verdicts = [self._judge(figure.key, target) for target in figure.targets]
        if not verdicts or None in verdicts:
            return None
        return all(verdicts)

    def _judge(self, key: str, target: Target) -> bool | None:
        value = self._of_both(key, target) if target.against else self.median(key, MIRROR)
        if value is None:
            return None
        # as printed, with two decimals: 1.004 times the bytes are 1.00 times (headers are not counted, nor rounding)
        value = round(value, 2)
        return value >= target.bound if target.at_least else value <= target.bound
