"""Robots: accounts of machines, made by a command, each with a secret and a list of what it may do.

    absent ── create() ──> valid ── its end comes ──> refused; listed until it is revoked
                             └── revoke() ──> absent, from the next request on, in every process

The secret of a robot names the record that it belongs to, so that one small file answers for it. Of the secret itself
only a hash is kept: it has 190 random bits, so nobody can guess it, and the hash need not be slow. Its form, a prefix
and a checksum, is one that scanners for leaked secrets can find without false alarms.

The record is looked at again at each request, also if the robot presents a token that the mirror issued. Nothing is
read while the folder of the records stays as it was.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
import string
import time
import zlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Final, Protocol

from mirror import telemetry
from mirror.aio.background import BackgroundTasks
from mirror.aio.bounded_threads import in_thread
from mirror.aio.caches import LruCache, TtlCache
from mirror.errors import AccessUnavailable, MirrorError, RecordChanged, StoreError
from mirror.oci.authorization import CallerCredentials
from mirror.policy.access_rules import AuthMethod, Identity, Rule, actions
from mirror.ports import ABSENT, Records
from mirror.values.json_form import CAMEL_CASE, JsonForm, Moment
from mirror.values.timestamps import format_moment

#: The kinds of the records: the robots, and when each was last used.
ROBOTS: Final = "robots"
USES: Final = "robot-uses"
#: What every secret begins with.
PREFIX: Final = "mirror_robot_"
NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
_LETTERS: Final = string.digits + string.ascii_uppercase + string.ascii_lowercase
_ID: Final = 10
_RANDOM: Final = 32
_SUM: Final = 6
_SECRET: Final = re.compile(rf"{PREFIX}([0-9A-Za-z]{{{_ID}}})[0-9A-Za-z]{{{_RANDOM}}}([0-9A-Za-z]{{{_SUM}}})")
#: Seconds for which a use is not written again.
_USE_EVERY: Final = 60.0
#: Seconds for which a refusal of the same robot is not logged again.
_LOGGED_EVERY: Final = 60.0
#: Seconds by which the clocks of replicas may differ.
_SLACK: Final = 60.0
#: Robots whose records are remembered.
_MOST: Final = 10_000


class RobotRecords(Records, Protocol):
    """Records that tell when they have changed."""

    def changed(self) -> int | None:
        """A number that differs after each change; None if that is not known."""


@dataclass(frozen=True, slots=True)
class Grant:
    """One entry of a robot's list: actions as rules name them, and patterns as in rules."""

    __pydantic_config__ = CAMEL_CASE

    actions: tuple[str, ...]
    repositories: tuple[str, ...]

    @property
    def rule(self) -> Rule:
        """The entry as a rule for everybody. Raises `ValueError`."""
        if not self.actions or not all(self.repositories) or not self.repositories:
            raise ValueError("an entry without actions or repositories")
        return Rule(True, ("*",), actions(self.actions), self.repositories)

    def __str__(self) -> str:
        return f"{','.join(self.actions)} {' '.join(self.repositories)}"


@dataclass(frozen=True, slots=True)
class Robot:
    """A robot's record. Times are in epoch seconds; `expires_at` None: valid until it is revoked."""

    __pydantic_config__ = CAMEL_CASE

    id: str
    name: str
    secret_hash: str
    allow: tuple[Grant, ...]
    created_at: Moment
    expires_at: Moment | None = None
    by: str = ""

    def refusal(self, now: float) -> str | None:
        """Why the robot may not be used at this time; None if it may. Before it was created, the clock must be wrong:
        an expired robot must not come back because a clock is set back.
        """
        if now < self.created_at - _SLACK:
            moment = format_moment(self.created_at)
            return f"it was created at {moment}, which is in the future: the clock is wrong here, or was wrong then"
        if self.expires_at is not None and now >= self.expires_at:
            return f"it expired at {format_moment(self.expires_at)}"
        return None

    @property
    def identity(self) -> Identity:
        """The identity of the robot. Raises `ValueError` if its list is not valid."""
        rules = tuple(grant.rule for grant in self.allow)
        return Identity(self.name, AuthMethod.ROBOT, proof=self.id, only=rules)


@dataclass(frozen=True, slots=True)
class RobotUse:
    """When a robot was last used, in epoch seconds; at most a minute late."""

    __pydantic_config__ = CAMEL_CASE

    id: str
    used_at: Moment


_ROBOT: Final = JsonForm(Robot, outside="id", sparse=True)
_USE: Final = JsonForm(RobotUse, outside="id")


def is_robot_secret(presented: CallerCredentials) -> bool:
    """True if this looks like a robot's secret, valid or not. It must not be shown to anybody else."""
    return presented.secret.startswith(PREFIX)


def new_secret() -> tuple[str, str]:
    """A new secret, and the id in it."""
    identifier, random = (_random(length) for length in (_ID, _RANDOM))
    return f"{PREFIX}{identifier}{random}{_checksum(identifier + random)}", identifier


def id_of(secret: str) -> str | None:
    """The id in a secret; None if the text is no secret of a robot, such as one with a typing error."""
    match = _SECRET.fullmatch(secret)
    if match is None or _checksum(secret[len(PREFIX) : -_SUM]) != match[2]:
        return None
    return match[1]


def create_robot(
    records: Records, name: str, allow: Iterable[Grant], *, now: float, expires_at: float | None, by: str = ""
) -> tuple[Robot, str]:
    """Blocking. Write the record of a new robot; durable on return. Returns it and its secret, which is kept nowhere.

    Raises `ValueError` if the name is not valid or taken, or the list is not valid; `StoreError`.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"not the name of a robot: {name[:80]!r} (lower-case letters, digits and . _ - between them)")
    if any(robot.name == name for robot in robots(records)):
        raise ValueError(f"there is a robot {name} already; revoke it first, or choose another name")
    secret, identifier = new_secret()
    robot = Robot(identifier, name, _hashed(secret), tuple(allow), now, expires_at, by)
    _ = robot.identity
    records.put(identifier, _ROBOT.to_json(robot))
    return robot, secret


def robots(records: Records) -> list[Robot]:
    """Blocking. Every robot, by name. Raises `StoreError`."""
    read = map(read_robot, records.all())
    return sorted(filter(None, read), key=lambda robot: robot.name)


def read_robot(record: Mapping[str, Any]) -> Robot | None:
    """The robot in a record; None if it is not valid."""
    robot = _ROBOT.from_json(record, id=record["key"])
    return None if _known(robot) is None else robot


def last_uses(uses: Records) -> dict[str, float]:
    """Blocking. The time of the last use of each robot that has been used, by id. Raises `StoreError`."""
    read = (_USE.from_json(record, id=record["key"]) for record in uses.all())
    return {use.id: use.used_at for use in read if use is not None}


def revoke_robot(records: Records, uses: Records, name: str) -> bool:
    """Blocking. Delete the robot of this name; False if there is none. Raises `StoreError`."""
    found = [robot for robot in robots(records) if robot.name == name]
    for robot in found:
        records.drop(robot.id)
        uses.drop(robot.id)
    return bool(found)


@dataclass(frozen=True, slots=True)
class _Known:
    """A robot, and the identity that follows from its record."""

    robot: Robot
    identity: Identity


def _known(robot: Robot | None) -> _Known | None:
    try:
        return None if robot is None else _Known(robot, robot.identity)
    except ValueError:
        return None


class Robots:
    """Authenticates robots, and says which are still valid; see `mirror.ports.Authenticator` and `Membership`. `now` is
    in epoch seconds. Records are read in `threads` (None: in those of the event loop).
    """

    def __init__(
        self,
        records: RobotRecords,
        uses: Records,
        *,
        now: Callable[[], float] = time.time,
        threads: Executor | None = None,
        look: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        """`look` is awaited before anything is believed that is remembered of records; None if nobody else writes them.
        It raises `StoreError`.
        """
        self._threads = threads
        self._look = look
        self._records = records
        self._uses = uses
        self._now = now
        self._read: LruCache[str, tuple[int, _Known | None]] = LruCache(_MOST, name="robots")
        self._noted: LruCache[str, float] = LruCache(_MOST, name="uses of robots")
        self._refused: TtlCache[str, str] = TtlCache(_MOST, _LOGGED_EVERY, name="refused robots")
        self._background = BackgroundTasks()

    def __repr__(self) -> str:
        return f"<Robots read={len(self._read)}>"

    async def identify(self, presented: CallerCredentials) -> Identity | None:
        """The robot with this secret, sent as a bearer or as the password of any user name; None if there is none.
        Raises `AccessUnavailable`.
        """
        identifier = id_of(presented.secret)
        known = None if identifier is None else await self._find(identifier)
        if known is None or not secrets.compare_digest(known.robot.secret_hash, _hashed(presented.secret)):
            return None
        return self._admit(known)

    async def current(self, identity: Identity) -> Identity | None:
        """See `Membership.current`. Raises `AccessUnavailable`."""
        known = await self._find(identity.proof)
        return None if known is None or known.robot.name != identity.name else self._admit(known)

    def stamp(self) -> object:
        """See `Membership.stamp`."""
        changed = self._records.changed()
        return object() if changed is None else changed

    def _admit(self, known: _Known) -> Identity | None:
        now, robot = self._now(), known.robot
        if (refusal := robot.refusal(now)) is not None:
            self._log_refusal(robot, refusal)
            return None
        if not 0 <= now - self._noted.get(robot.id, float("-inf")) < _USE_EVERY:
            self._noted[robot.id] = now
            self._background.start(asyncio.to_thread(self._note, robot.id, now))
        return known.identity

    def _log_refusal(self, robot: Robot, reason: str) -> None:
        """Says in the log, once a minute at most, what the client is not told: its answer is that of a wrong secret."""
        if self._refused.get(robot.id) is None:
            self._refused[robot.id] = reason
            telemetry.log.warning("robot refused", robot=robot.name, reason=reason)

    async def _find(self, identifier: str) -> _Known | None:
        """The robot of this id; None if there is none, or its record is not valid. Raises `AccessUnavailable` if the
        record cannot be read now.
        """
        if self._look is not None:
            try:
                await self._look()
            except StoreError as error:
                raise AccessUnavailable("the record of the robot cannot be read") from error
        stamp = self._records.changed()
        known = self._read.get(identifier)
        if stamp is not None and known is not None and known[0] == stamp:
            return known[1]
        try:
            record: dict[str, Any] | None = await in_thread(self._threads, self._records.get, identifier)
        except StoreError as error:
            raise AccessUnavailable("the record of the robot cannot be read") from error
        found = None if record is None else _known(_ROBOT.from_json(record, id=identifier))
        if stamp is not None:
            self._read.pop(identifier, None)
            self._read[identifier] = stamp, found
        return found

    def _note(self, identifier: str, now: float) -> None:
        """Blocking. Write that a robot was used, unless another process has done so within a minute."""
        try:
            before = self._uses.versioned(identifier)
            use = None if before is None else _USE.from_json(before.record, id=identifier)
            if use is None or not 0 <= now - use.used_at < _USE_EVERY:
                expected = ABSENT if before is None else before.version
                self._uses.put(identifier, _USE.to_json(RobotUse(identifier, now)), expect=expected)
        except RecordChanged:
            return
        except MirrorError as error:
            telemetry.log.warning("robot use not written", robot=identifier, reason=str(error))

    async def aclose(self) -> None:
        """Wait for what is being written. Repeatable."""
        await self._background.finish()


def _hashed(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _random(length: int) -> str:
    return "".join(secrets.choice(_LETTERS) for _ in range(length))


def _checksum(text: str) -> str:
    """CRC-32 in six letters."""
    rest, letters = zlib.crc32(text.encode()), ""
    for _ in range(_SUM):
        rest, digit = divmod(rest, len(_LETTERS))
        letters = _LETTERS[digit] + letters
    return letters
