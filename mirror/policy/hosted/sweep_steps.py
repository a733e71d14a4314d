"""What the sweep of a bucket decides about an object with the bytes of a hosted blob. Pure.

An object whose blob has no state at all is left of a push that crashed before it wrote the state, or the state was
lost. The sweep cannot tell the two apart, and deletes nothing that may be needed: it writes a state that names the
object, and that waits to be collected. Collection then decides, which knows what repositories have.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from mirror.policy.hosted.blob_state import BlobState

#: Seconds after its beginning in which an attempt to store a blob may still change the state.
LONGEST_ATTEMPT: Final = 43200.0
#: Seconds for which an object is left alone that no state names. Far more, because it is measured by another clock.
UNNAMED: Final = 86400.0


class SweepStep(Enum):
    """What happens to one object."""

    KEEP = "keep"
    #: The state names another object, or the blob is gone: no state will ever name this one.
    DELETE = "delete"
    #: Write a state that names it, and that waits to be collected.
    QUEUE = "queue"


def sweep_step(state: BlobState | None, attempt: str, *, is_old: bool, changed_lately: bool = False) -> SweepStep:
    """What happens to the object of an attempt. `state` is None if there is none. `is_old` says that the attempt can no
    longer come to its end; `changed_lately` that the state may have named the object until a while ago: clients that
    were sent to it read it to its end.
    """
    # the object that is named stays, also that of a lost blob: it may be all that is left of it
    if not is_old or (state is not None and state.attempt == attempt):
        return SweepStep.KEEP
    if state is None:
        return SweepStep.QUEUE
    return SweepStep.KEEP if changed_lately else SweepStep.DELETE
