"""Versions of records, by which a change is made only if nothing else has changed the record meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final, Generic, NewType, TypeAlias, TypeVar

T_co = TypeVar("T_co", covariant=True)

#: Names one state of a record, as an entity tag does (RFC 9110, 8.8.3). It has no order and is compared only for
#: equality; two writes of the same content may give the same version.
Version = NewType("Version", str)


class Absent(Enum):
    """The type of `ABSENT`."""

    ABSENT = "absent"


#: Expected of a record: that there is none.
ABSENT: Final = Absent.ABSENT

#: What a writer expects of a record before the change: this version, none at all (`ABSENT`), or anything (None).
Expected: TypeAlias = Version | Absent | None


@dataclass(frozen=True, slots=True)
class Versioned(Generic[T_co]):
    """A record, and its version at the moment when it was read."""

    record: T_co
    version: Version
