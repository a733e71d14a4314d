"""A pin or a freeze whose file exists but cannot be read, and what is still known about it. Pure.

The name of a record's file is a hash of its key, `<repository> <tag or digest>`. So it can be checked whether a record
was written for a given tag or digest, even if the content of the file is damaged.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from mirror.errors import RequestError
from mirror.oci.reference import Reference, Repo, check_name, check_registry, parse_reference

#: What a pin or a freeze is about.
Subject = tuple[Repo, Reference]


def record_file_name(key: str) -> str:
    """The name of a record's file without its suffix: 32 hexadecimal digits."""
    return hashlib.blake2b(key.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class UnreadableRecord:
    """A record that cannot be read.

    `kind` is `pins` or `freezes`. `file` is its path, `name` the file's name without suffix. `why` is the reason. `key`
    is the key found in what is left of the text, if it matches `name`; otherwise it is empty.
    """

    kind: str
    file: str
    name: str
    why: str
    key: str = ""

    def is_about(self, repo: Repo, reference: Reference) -> bool:
        """Whether the record was written for this tag or digest."""
        return record_file_name(f"{repo} {reference}") == self.name

    @property
    def subject(self) -> Subject | None:
        """The repository and reference according to `key`; None if `key` is empty or cannot be parsed."""
        name, _, reference = self.key.partition(" ")
        registry, _, path = name.partition("/")
        try:
            return Repo(check_registry(registry), check_name(path)), parse_reference(reference)
        except RequestError:
            return None

    @property
    def trouble(self) -> str:
        """A message for a record whose subject is unknown: what is wrong and what to do."""
        commands = "mirror pin` or `mirror unpin" if self.kind == "pins" else "mirror freeze` or `mirror unfreeze"
        return (
            f"{self.file} cannot be read ({self.why}), and what it keeps is not known: "
            "nothing is evicted or purged, nor deleted by rules. "
            f"`{commands}` the image that it was for, restore the file, or delete it"
        )
