"""The state of a hosted blob whose bytes are in a bucket. Pure; times are in epoch seconds, sizes in bytes.

    no state ── stored ──> PRESENT ── collected ──> GONE ── stored ──> PRESENT
                             │  └─ stored ──> PRESENT: the object was not as the state says
                             └── lost ──> LOST ─┬─ collected ──> GONE
                                                └─ stored ──> PRESENT

Whatever the condition, `queued_at` is set while the blob waits to be collected; `rescued` ends the wait.

A deletion in a bucket cannot depend on anything, and may arrive late. So each attempt to upload a blob has a key of its
own, with a random part, and the state says which attempt counts. No object is ever replaced, and a key that was deleted
is never used again (docs/decisions/0043).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final

from mirror.oci.digest import Digest
from mirror.values.json_form import CAMEL_CASE, DigestField, JsonForm, Moment

#: The random part of a key: 16 hexadecimal digits.
ATTEMPT: Final = re.compile("[0-9a-f]{16}")


class Condition(Enum):
    """What is known of the bytes."""

    PRESENT = "present"
    #: The object was found absent or damaged. A push of the blob repairs it.
    LOST = "lost"
    #: Collected, or never here: no object counts.
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class BlobState:
    """The state of a blob of `size` bytes since `since`. `attempt` names the object that has the bytes, or had them;
    empty if the blob is gone.

    `changes` counts the changes of this record. So no two states of a blob are alike, and a version that a store
    derives from the content names one moment in the life of the blob.
    """

    __pydantic_config__ = CAMEL_CASE

    digest: DigestField
    condition: Condition
    size: int
    since: Moment
    attempt: str = ""
    queued_at: Moment | None = None
    changes: int = 0

    @property
    def is_present(self) -> bool:
        """True if the bucket has the bytes, as far as is known."""
        return self.condition is Condition.PRESENT

    def stored(self, attempt: str, size: int, at: float) -> BlobState:
        """The state once an attempt has stored the bytes. The blob does not wait to be collected."""
        return self._changed(condition=Condition.PRESENT, attempt=attempt, size=size, since=at, queued_at=None)

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
        return self._changed(condition=Condition.GONE, attempt="", size=0, since=at, queued_at=None)

    def _changed(self, **changes: Any) -> BlobState:
        return replace(self, changes=self.changes + 1, **changes)

    def to_json(self) -> bytes:
        """The content of its record."""
        return json.dumps(_STATE.to_json(self)).encode()

    @classmethod
    def from_json(cls, digest: Digest, text: bytes) -> BlobState | None:
        """Read it back; None if it cannot be parsed, or contradicts itself."""
        state = _STATE.parse(text, digest=str(digest))
        if state is None or state.size < 0:
            return None
        named = ATTEMPT.fullmatch(state.attempt) is not None
        return None if named is (state.condition is Condition.GONE) else state


def no_blob(digest: Digest) -> BlobState:
    """The state of a blob that was never here."""
    return BlobState(digest, Condition.GONE, 0, 0.0)


_STATE = JsonForm(BlobState, outside="digest", sparse=True)
