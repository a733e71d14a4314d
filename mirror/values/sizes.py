"""Sizes and capacities as people write them: `500GB`, `20GiB`, `80%`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

_UNITS: Final = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "PB": 10**15,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
    "PIB": 2**50,
}
_SIZE: Final = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,9})?) ?([a-zA-Z]*)")
_PERCENT: Final = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,9})?) ?%")
_STEPS: Final = ("B", "kB", "MB", "GB", "TB", "PB")


@dataclass(frozen=True, slots=True)
class Capacity:
    """Either `bytes`, or `percent` of the disk that the store is on (above 0, up to 100)."""

    bytes: int | None = None
    percent: float | None = None

    def of(self, disk: int) -> int:
        """The capacity in bytes on a disk of `disk` bytes."""
        if self.bytes is not None:
            return self.bytes
        return int(disk * (self.percent or 0.0) / 100)

    def __str__(self) -> str:
        return f"{self.percent:g}%" if self.bytes is None else format_size(self.bytes)


def parse_size(text: str) -> int:
    """Parse a number with B, kB, MB, GB, TB, PB (powers of 1000) or KiB, MiB, GiB, TiB, PiB (powers of 1024).

    Returns bytes. A number without a unit is in bytes. A lone K, M, G or T is refused, because it means a power of 1000
    to some people and of 1024 to others. Raises `ValueError`.
    """
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise ValueError(f"not a size: {text[:40]!r}; write for example 500GB, 20GiB or 1048576")
    number, unit = match.groups()
    factor = _UNITS.get(unit.upper() or "B")
    if factor is None:
        raise ValueError(f"unknown unit {unit[:20]!r}: write {_hint(unit)}")
    size = int(Decimal(number) * factor)
    if size >= 2**63:
        raise ValueError(f"too large: {text[:40]!r}")
    return size


def parse_capacity(text: str) -> Capacity:
    """Parse a size, or a share of the disk such as `80%`. Raises `ValueError`, also for a capacity of 0."""
    match = _PERCENT.fullmatch(text.strip())
    if match:
        percent = float(match[1])
        if not 0 < percent <= 100:
            raise ValueError(f"a share of the disk is above 0% and at most 100%: {text[:40]!r}")
        return Capacity(percent=percent)
    if "%" in text:
        raise ValueError(f"not a share of the disk: {text[:40]!r}; write for example 80%")
    size = parse_size(text)
    if not size:
        raise ValueError("a capacity of 0: write for example 500GB or 80%")
    return Capacity(bytes=size)


def format_size(size: int) -> str:
    """Format bytes for people, with three digits and units that are powers of 1000: `1.54 GB`."""
    value, step = float(size), 0
    while abs(value) >= 999.5 and step < len(_STEPS) - 1:
        value /= 1000
        step += 1
    return f"{size} B" if not step else f"{value:.3g} {_STEPS[step]}"


def _hint(unit: str) -> str:
    """The units that may have been meant by an unknown one, for the error message."""
    letter = unit[:1].upper()
    if unit.upper() in ("K", "M", "G", "T", "P"):
        return f"{'k' if letter == 'K' else letter}B for powers of 1000 or {letter}iB for powers of 1024"
    return "B, kB, MB, GB, TB, PB, or KiB, MiB, GiB, TiB, PiB"
