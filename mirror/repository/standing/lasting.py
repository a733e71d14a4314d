"""`Standing`, which says whether an answer still stands, and the repositories that give one."""

from __future__ import annotations

from typing import Final, Protocol, TypeGuard, runtime_checkable

from mirror.oci.digest import Digest
from mirror.oci.reference import Reference
from mirror.repository.answers import BlobStat, ManifestAnswer
from mirror.repository.caches import LOOK_EVERY
from mirror.repository.protocol import Readable

#: Seconds for which an answer stands at most.
LONGEST: Final = LOOK_EVERY


class Standing(Protocol):
    """See the drawing of this folder."""

    def stands(self) -> bool:
        """True if the question, asked now, would get the same answer. Quick: at most a look at a file. Raises
        nothing.
        """

    def used(self) -> None:
        """Notes that the content was used, as the question would."""


@runtime_checkable
class Lasting(Readable, Protocol):
    """A repository that can say whether its answers still stand."""

    def manifest_stands(self, reference: Reference, answer: ManifestAnswer, *, head: bool) -> Standing | None:
        """Returns the standing of this answer to GET, or to HEAD; None if only asking again can tell whether it still
        stands.
        """

    def blob_stands(self, digest: Digest, answer: BlobStat) -> Standing | None:
        """The same for the answer to HEAD of a blob."""


#: Whether the repositories of a class are `Lasting`. `isinstance` would look for each verb at every answer.
_lasting: Final[dict[type, bool]] = {}


def is_lasting(repository: Readable) -> TypeGuard[Lasting]:
    """True if the repository can say whether its answers still stand."""
    kind = type(repository)
    if kind not in _lasting:
        _lasting[kind] = isinstance(repository, Lasting)
    return _lasting[kind]


def manifest_standing(inner: Readable, reference: Reference, answer: ManifestAnswer, *, head: bool) -> Standing | None:
    """Returns the standing that `inner` gives; None if it gives none."""
    return inner.manifest_stands(reference, answer, head=head) if is_lasting(inner) else None


def blob_standing(inner: Readable, digest: Digest, answer: BlobStat) -> Standing | None:
    """Returns the standing that `inner` gives; None if it gives none."""
    return inner.blob_stands(digest, answer) if is_lasting(inner) else None
