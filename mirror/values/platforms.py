"""Platforms of images, and the choice of those that are wanted (image-spec, image-index.md)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from mirror.oci.manifest import Descriptor

_PART: Final = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
#: Other common names of architectures, the same that container runtimes accept.
_ARCHITECTURES: Final = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "i386": "386", "armhf": "arm"}
#: The variant that an architecture without one means.
_VARIANTS: Final = {"arm64": "v8", "arm": "v7"}


@dataclass(frozen=True, slots=True, order=True)
class Platform:
    """A platform such as `linux/arm/v7`. An empty `variant` means the architecture's usual one."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    def matches(self, other: Mapping[str, Any]) -> bool:
        """Whether a descriptor's `platform` is this platform."""
        return self._whole() == read_platform(other)._whole()

    def _whole(self) -> tuple[str, str, str]:
        return self.os, self.architecture, self.variant or _VARIANTS.get(self.architecture, "")


def read_platform(platform: Mapping[str, Any]) -> Platform:
    """Read a descriptor's `platform`. Architectures get their usual names."""
    architecture = str(platform.get("architecture", "")).lower()
    return Platform(
        str(platform.get("os", "")).lower(),
        _ARCHITECTURES.get(architecture, architecture),
        str(platform.get("variant", "") or "").lower(),
    )


def parse_platform(text: str) -> Platform:
    """Parse `os/architecture` or `os/architecture/variant`. Raises `ValueError`."""
    parts = text.strip().lower().split("/")
    if len(parts) not in (2, 3) or not all(_PART.fullmatch(part) for part in parts):
        raise ValueError(f"not a platform such as linux/amd64: {text!r}")
    return read_platform(dict(zip(("os", "architecture", "variant"), parts, strict=False)))


def parse_platforms(texts: Iterable[str]) -> tuple[Platform, ...]:
    """Parse texts, each of which may contain several platforms separated by commas. Raises `ValueError`.

    An empty result means every platform.
    """
    return tuple(dict.fromkeys(parse_platform(part) for text in texts for part in text.split(",") if part.strip()))


def wanted_children(children: Iterable[Descriptor], platforms: Iterable[Platform]) -> list[Descriptor]:
    """The manifests of an index that are for one of `platforms`; all of them if `platforms` is empty.

    Manifests without a platform are always included: an index of artifacts has no others. Attestations
    (`unknown/unknown`, written by build tools) are included only if `platforms` is empty.
    """
    chosen = tuple(platforms)
    if not chosen:
        return list(children)
    return [
        child
        for child in children
        if not child.platform or any(platform.matches(child.platform) for platform in chosen)
    ]
