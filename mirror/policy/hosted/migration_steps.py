"""What a migration does with one record. Pure decisions by what is in the source, in the target, and what a pass of the
migration has written last.

    source    target    written    the record
    X         X         any        is the same
    X         absent    none       is written
    X         absent    any        was deleted there by somebody: a conflict
    X         W         W          has changed in the source: it is written
    X         other     any        is somebody else's: a conflict
    absent    W         W          was deleted in the source: deleted in the target
    absent    other     any        is somebody else's: a conflict
    absent    absent    any        is forgotten

`written` names up to two contents while a write is under way, because it may have been made or not; `DELETED` is one of
them while a deletion is.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final


class MigrationStep(Enum):
    """What is done with a record of the target."""

    SAME = "same"
    WRITE = "write"
    DELETE = "delete"
    #: Nothing: neither side has it.
    FORGET = "forget"
    #: Nothing: it is not what the migration has written. The value says how it differs.
    CHANGED_THERE = "has another content in the target"
    DELETED_THERE = "was deleted in the target"
    ONLY_THERE = "is only in the target"

    @property
    def is_conflict(self) -> bool:
        """True if the two sides differ, and the migration leaves that as it is."""
        return self in (MigrationStep.CHANGED_THERE, MigrationStep.DELETED_THERE, MigrationStep.ONLY_THERE)


#: Stands for the absence of a record among what was written.
DELETED: Final = ""


@dataclass(frozen=True, slots=True)
class Written:
    """What the migration has written of a record: the version of its content, and while a write is under way, the one
    that is perhaps there already.
    """

    version: str | None = None
    next: str | None = None

    def is_ours(self, target: str | None) -> bool:
        """True if what the target has was written by the migration, or if it never wrote anything and there is
        nothing.
        """
        if target is None:
            return self.version is None or self.next == DELETED
        return target in (self.version, self.next)


NOTHING_WRITTEN: Final = Written()


def migration_step(
    source: str | None, target: str | None, written: Written = NOTHING_WRITTEN, *, overwrite: bool = False
) -> MigrationStep:
    """What to do with a record. `source` and `target` name the content that each side has; None: it has none.

    With `overwrite`, the target becomes like the source, whatever it has.
    """
    if source == target:
        return MigrationStep.FORGET if source is None else MigrationStep.SAME
    ours = overwrite or written.is_ours(target)
    if source is None:
        return MigrationStep.DELETE if ours else MigrationStep.ONLY_THERE
    if ours:
        return MigrationStep.WRITE
    return MigrationStep.DELETED_THERE if target is None else MigrationStep.CHANGED_THERE
