"""What the sweep of a bucket decides about an object with the bytes of a hosted blob. Pure.

An object that no state names is left of a push that crashed before it changed the state, or its state was lost. The
sweep cannot tell the two apart, and deletes nothing that may be needed: it lets the state name the object and wait to
be collected, so that collection decides, which knows what repositories have.
"""

from __future__ import annotations

from enum import Enum

from mirror.policy.hosted.blob_state import BlobState, Condition


class SweepStep(Enum):
    """What happens to one object."""

    KEEP = "keep"
    #: Its generation is over: no state will name it again.
    DELETE = "delete"
    #: Let the state name it, and wait to be collected.
    QUEUE = "queue"
    #: Let the state name it: it repairs the blob.
    REPAIR = "repair"
    #: The state names it, and it has another size: look once more.
    DOUBT = "doubt"
    #: Nothing that the mirror does explains it. It stays.
    UNEXPLAINED = "unexplained"


def sweep_step(state: BlobState, generation: int, size: int) -> SweepStep:
    """What happens to the object of a generation that has `size` bytes."""
    if generation < state.generation:
        return SweepStep.DELETE
    if generation == state.generation:
        if state.condition is Condition.GONE:
            return SweepStep.DELETE
        # the object of a lost blob may be all that is left of it
        return SweepStep.DOUBT if state.is_present and size != state.size else SweepStep.KEEP
    if state.condition is Condition.GONE:
        return SweepStep.QUEUE
    if state.condition is Condition.LOST and size == state.size:
        return SweepStep.REPAIR
    return SweepStep.UNEXPLAINED
