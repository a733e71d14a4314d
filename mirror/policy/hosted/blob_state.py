"""The state of a hosted blob whose bytes are in a bucket. Pure; times are in epoch seconds, sizes in bytes.

    no state ── stored ──> PRESENT ── collected ──> GONE ── stored ──> PRESENT, at a higher generation
                              │                      ^
                              └── lost ──> LOST ─────┴── collected
                                             └── stored ──> PRESENT, at a higher generation

Whatever the condition, `queued_at` is set while the blob waits to be collected; `rescued` ends the wait.

A deletion in a bucket cannot depend on anything, and may arrive late. So a key that may have been deleted is never used
again: each blob that is stored anew gets a higher generation, which is part of its key. The state of a blob that is
gone stays for ever, because it knows the generation.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from enum import Enum

from mirror.oci.digest import Digest
from mirror.values.json_form import CAMEL_CASE, DigestField, JsonForm, Moment


class Condition(Enum):
    """What is known of the bytes of the current generation."""

    PRESENT = "present"
    #: The object was found absent or damaged. A push of the blob repairs it.
    LOST = "lost"
    #: Collected: the object is deleted, or will be.
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class BlobState:
    """The state of a blob of `size` bytes since `since`.

    `changes` counts the changes of this record. So no two states of a blob are alike, and a version that a store
    derives from the content names one moment in the life of the blob.
    """

    __pydantic_config__ = CAMEL_CASE

    digest: DigestField
    generation: int
    condition: Condition
    size: int
    since: Moment
    queued_at: Moment | None = None
    changes: int = 0

    @property
    def is_present(self) -> bool:
        """True if the bucket has the bytes, as far as is known."""
        return self.condition is Condition.PRESENT

    def queued(self, at: float) -> BlobState:
        """The state while the blob waits to be collected since `at`."""
        return self._changed(queued_at=at)

    def rescued(self) -> BlobState:
        """The state once the blob no longer waits."""
        return self._changed(queued_at=None)

    def lost(self, at: float) -> BlobState:
        """The state once the object was found absent or damaged. A blob that waits to be collected waits on."""
        return self._changed(condition=Condition.LOST, since=at)

    def collected(self, at: float) -> BlobState:
        """The state once the blob is collected."""
        return self._changed(condition=Condition.GONE, since=at, queued_at=None)

    def _changed(self, **changes: object) -> BlobState:
        return replace(self, changes=self.changes + 1, **changes)  # type: ignore[arg-type]

    def to_json(self) -> bytes:
        """The content of its record."""
        return json.dumps(_STATE.to_json(self)).encode()

    @classmethod
    def from_json(cls, digest: Digest, text: bytes) -> BlobState | None:
        """Read it back; None if it cannot be parsed."""
        state = _STATE.parse(text, digest=str(digest))
        return state if state and state.generation >= 0 and state.size >= 0 else None


def no_blob(digest: Digest) -> BlobState:
    """The state of a blob that was never here."""
    return BlobState(digest, 0, Condition.GONE, 0, 0.0)


def stored(before: BlobState, generation: int, size: int, at: float) -> BlobState:
    """The state once the bytes were stored at a generation that `before` does not rule out."""
    if generation <= before.generation:
        raise ValueError(f"generation {generation} of {before.digest} may have been deleted")
    return BlobState(before.digest, generation, Condition.PRESENT, size, at, changes=before.changes + 1)


_STATE = JsonForm(BlobState, outside="digest", sparse=True)
