"""Answers that rest on a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mirror.errors import MirrorError
from mirror.oci.digest import Digest
from mirror.ports import BlobInfo, BlobReader
from mirror.repository.answers import BlobStat, Outcome
from mirror.repository.standing.lasting import LONGEST


def opened_and_closed(open_blob: Callable[[Digest], tuple[BlobInfo, BlobReader]], digest: Digest) -> BlobInfo:
    """Returns what opening a blob says of it: unlike a look at its name, that finds out whether it can be read. Raises
    what `open_blob` raises.
    """
    info, reader = open_blob(digest)
    reader.close()
    return info


@dataclass(frozen=True, slots=True, repr=False)
class OnDisk:
    """HEAD of a blob that the repository may serve, and whose file is looked at each time."""

    digest: Digest
    size: int
    look: Callable[[Digest], BlobInfo]
    now: Callable[[], float]
    since: float
    touch: Callable[[Digest], None]

    @classmethod
    def of(
        cls,
        digest: Digest,
        answer: BlobStat,
        granted: int | None,
        look: Callable[[Digest], BlobInfo],
        now: Callable[[], float],
        touch: Callable[[Digest], None],
    ) -> OnDisk | None:
        """An answer that is given again; None if it does not rest on the file alone. `granted` is the size that the
        process remembers of the repository's grant: one with a size is taken back by a purge alone, which counts when
        the answer has grown too old.
        """
        if answer.outcome is not Outcome.HIT or answer.size is None or granted != answer.size:
            return None
        return cls(digest, answer.size, look, now, now(), touch)

    def __repr__(self) -> str:
        return f"<OnDisk {self.digest}>"

    def stands(self) -> bool:
        """See `Standing`."""
        if not self.since <= self.now() < self.since + LONGEST:
            return False
        try:
            return self.look(self.digest).size == self.size
        except MirrorError:
            return False

    def used(self) -> None:
        """See `Standing`."""
        self.touch(self.digest)
