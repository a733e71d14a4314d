"""Where a bucket is: `s3://name/prefix`, `gs://name/prefix`, `az://container/prefix`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

Cloud: TypeAlias = Literal["s3", "gs", "az"]

#: What every store of the kind accepts as the name of a bucket, and old stores beyond it (capitals, underscores).
_NAMES: Final = {
    "s3": re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}"),
    "gs": re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]"),
    "az": re.compile(r"(?:[a-z0-9](?:[a-z0-9]|-(?=[a-z0-9])){2,62}|\$root)"),
}
_PART: Final = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class BucketAddress:
    """A bucket of a cloud (of a container, at Azure), and the prefix of all keys in it, without slashes at its ends."""

    cloud: Cloud
    name: str
    prefix: str = ""

    def __str__(self) -> str:
        return f"{self.cloud}://{self.name}" + (f"/{self.prefix}" if self.prefix else "")


def parse_bucket(text: str) -> BucketAddress:
    """Parse the address of a bucket. Raises `ValueError`."""
    scheme, separator, rest = text.partition("://")
    if not separator or scheme not in get_args(Cloud):
        raise ValueError(
            f"{text[:80]!r} is no bucket: write s3://name/prefix, gs://name/prefix or az://container/prefix"
        )
    name, _, prefix = rest.partition("/")
    if not _NAMES[scheme].fullmatch(name):
        raise ValueError(f"{name[:80]!r} cannot be the name of a bucket of {scheme}://")
    prefix = prefix.removesuffix("/")
    parts = prefix.split("/") if prefix else []
    wrong = [part for part in parts if not _PART.fullmatch(part) or part in (".", "..")]
    if wrong or len(prefix) > 200:
        raise ValueError(
            f"{prefix[:80]!r} cannot be a prefix: write up to 200 letters, digits and . _ - in parts separated by /"
        )
    return BucketAddress(_CLOUDS[scheme], name, prefix)


_CLOUDS: Final[dict[str, Cloud]] = {cloud: cloud for cloud in get_args(Cloud)}
