"""Versions of records, by which a change is made only if nothing else has changed the record meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final, Generic, NewType, Protocol, TypeAlias, TypeVar

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
class InTime:
    """Of a record, `expected`, and that it is not too late for the change: `check` is called at the last moment before
    it, after the version was read that the change depends on, and raises if it is.
    """

    expected: Expected
    check: Callable[[], None]


#: On what a change of a record depends.
Condition: TypeAlias = Expected | InTime


def in_time(condition: Condition) -> Expected:
    """What is expected of the record, if it is not too late for the change. Raises what `InTime.check` raises."""
    if isinstance(condition, InTime):
        condition.check()
        return condition.expected
    return condition


class Steps(Protocol):
    """The steps of a request that changes hosted content. May be used from any thread, by one at a time.

    A process may be frozen, or its machine, while a client waits, gives up, and does the same elsewhere. What the
    request would still change then is not what the client wants any more (`mirror.policy.hosted.standstill`).
    """

    def go_on(self, *, after_long_work: bool = False) -> None:
        """A step, after which others follow. Raises `StaleRequest` if the request has stood still since the last one,
        or if its client has left; only that counts after work that may take as long.
        """

    def expect(self, expected: Expected) -> Condition:
        """On what a change depends: on what is expected of the record, and on `go_on` at the moment of the change."""


class _OwnSteps:
    """See `OWN_WORK`."""

    def __repr__(self) -> str:
        return "<steps of the mirror's own work>"

    def go_on(self, *, after_long_work: bool = False) -> None:
        """Nobody waits for this step."""

    def expect(self, expected: Expected) -> Condition:
        """Nothing more."""
        return expected


#: Those of work that no client waits for: it has a lease, if others could do it as well, and writes by versions.
OWN_WORK: Final[Steps] = _OwnSteps()


@dataclass(frozen=True, slots=True)
class Versioned(Generic[T_co]):
    """A record, and its version at the moment when it was read."""

    record: T_co
    version: Version
