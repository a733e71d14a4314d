"""A pin or a freeze whose file is there and cannot be read, and what is known of it all the same. Pure.

A note's file is called by a hash of its key, `<repository> <tag or digest>`. So whoever has a name can tell whether the
note was about it, whatever has become of its content.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from mirror.errors import RequestError
from mirror.oci.reference import Reference, Repo, check_name, check_registry, parse_reference

__all__ = ["Subject", "UnreadNote", "note_name"]

#: What a pin or a freeze is about.
Subject = tuple[Repo, Reference]


def note_name(key: str) -> str:
    """What the file of a note is called, without its suffix: 32 hexadecimal digits."""
    return hashlib.blake2b(key.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class UnreadNote:
    """`kind` is `pins` or `freezes`; `why` it cannot be read; `key` what is left of its text says, checked by its name,
    empty where nothing is.
    """

    kind: str
    file: str
    name: str
    why: str
    key: str = ""

    def is_about(self, repo: Repo, reference: Reference) -> bool:
        """Whether it was written for this tag or digest."""
        return note_name(f"{repo} {reference}") == self.name

    @property
    def subject(self) -> Subject | None:
        """By its own text; None where too little is left of it."""
        name, _, reference = self.key.partition(" ")
        registry, _, path = name.partition("/")
        try:
            return Repo(check_registry(registry), check_name(path)), parse_reference(reference)
        except RequestError:
            return None

    @property
    def trouble(self) -> str:
        """What is wrong and what to do, where nobody knows what it was about."""
        commands = "mirror pin` or `mirror unpin" if self.kind == "pins" else "mirror freeze` or `mirror unfreeze"
        return (
            f"{self.file} cannot be read ({self.why}), and what it keeps is not known: nothing is evicted or purged. "
            f"`{commands}` the image that it was for, restore the file, or delete it"
        )
