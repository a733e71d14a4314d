"""Accounts with passwords in an htpasswd file, bcrypt only.

A password that was right before is checked before others (`password_queue.py`), so that account holders can log in
however many wrong passwords arrive meanwhile.

The file is read again when it changes. If it becomes unusable or is removed, the accounts last read stay valid: an
editing mistake must not lock a cluster out, and the log says what is wrong.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor
from functools import lru_cache
from pathlib import Path
from typing import Final

import bcrypt

from mirror import telemetry
from mirror.access.password_queue import PasswordQueue
from mirror.aio.caches import LruCache
from mirror.errors import ConfigError, reason_of
from mirror.oci.authorization import CallerCredentials
from mirror.policy.access_rules import AuthMethod, Identity

_HASH: Final = re.compile(r"\$2[aby]\$\d\d\$[./A-Za-z0-9]{53}")
#: Bytes of a password that bcrypt uses. Longer passwords are refused: two that differ only after these bytes would be
#: equal.
LONGEST_PASSWORD: Final = 72
#: Hashes of right passwords that are remembered.
_MOST: Final = 10_000
#: A hash without a known password, only compared with to spend time; its cost is replaced as needed.
_DUMMY: Final = "$2b$10$CwTycUXWue0Thq9StjUM0uJ8n1Z1Cw1Z1Cw1Z1Cw1Z1Cw1Z1Cw1Z"


def parse_htpasswd(text: str) -> dict[str, str]:
    """Hashes by name. Raises `ValueError` with the number of the line, never its hash."""
    accounts: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, colon, hashed = line.strip().partition(":")
        if not colon or not name:
            raise ValueError(f"line {number} is not name:hash")
        if not _HASH.fullmatch(hashed):
            raise ValueError(f"line {number}: the hash of {name!r} is not bcrypt; create it with htpasswd -B")
        if name in accounts:
            raise ValueError(f"line {number}: {name!r} is there twice")
        accounts[name] = hashed
    return accounts


def check_htpasswd(path: Path) -> dict[str, str]:
    """Blocking. Hashes by name. Raises `ConfigError` naming file and line."""
    try:
        return parse_htpasswd(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"access.htpasswd: {path}: {reason_of(error)}"]) from error
    except ValueError as error:
        raise ConfigError([f"access.htpasswd: {path}: {error}"]) from error


class Htpasswd:
    """Authenticates by an htpasswd file; see `Authenticator` and `Membership` in `mirror.ports`. `groups` are those of
    each name.
    """

    def __init__(
        self,
        path: Path,
        executor: Executor,
        groups: Mapping[str, frozenset[str]] | None = None,
        *,
        queue: PasswordQueue | None = None,
    ) -> None:
        """`executor` runs bcrypt, a tenth of a second for each check, in as many threads as `queue` allows checks at
        once: that limits the cost of password guessing.
        """
        self._path = path
        self._executor = executor
        self._queue = queue or PasswordQueue(1)
        self._key = secrets.token_bytes(32)
        self._correct: LruCache[bytes, bool] = LruCache(_MOST, name="correct passwords")
        self._groups = groups or {}
        self._accounts: dict[str, str] = {}
        self._stamp: tuple[int, ...] | None = None

    def __repr__(self) -> str:
        return f"<Htpasswd {self._path} accounts={len(self._accounts)}>"

    def load(self) -> None:
        """Blocking. Read the file. Raises `ConfigError` if it cannot be used."""
        stamp = _stamp(self._path)
        self._accounts = check_htpasswd(self._path)
        self._stamp = stamp

    async def identify(self, presented: CallerCredentials) -> Identity | None:
        """The account with this name and password, or None. Raises `TooManyLogins`."""
        if not presented.username:
            return None
        hashed = hashlib.blake2b(presented.fingerprint.encode(), key=self._key, digest_size=16).digest()
        async with self._queue.turn(presented.client, first=hashed in self._correct):
            identity = await asyncio.get_running_loop().run_in_executor(self._executor, self._check, presented)
        self._remember(hashed, correct=identity is not None)
        return identity

    def _remember(self, hashed: bytes, *, correct: bool) -> None:
        self._correct.pop(hashed, None)
        if correct:
            self._correct[hashed] = True

    def _check(self, presented: CallerCredentials) -> Identity | None:
        self._refresh()
        hashed = self._accounts.get(presented.username)
        password = presented.password.encode()
        correct = hashed is not None and _matches(password[:LONGEST_PASSWORD], hashed)
        if hashed is None or not correct or len(password) > LONGEST_PASSWORD:
            for cost in costs_to_spend(hashed, self._accounts.values()):
                _matches(password[:LONGEST_PASSWORD], f"{_DUMMY[:4]}{cost:02}{_DUMMY[6:]}")
            return None
        return self._identity(presented.username, hashed)

    def _identity(self, name: str, hashed: str) -> Identity:
        return Identity(name, AuthMethod.PASSWORD, self._groups.get(name, frozenset()), proof=_proof(hashed))

    async def current(self, identity: Identity) -> Identity | None:
        """See `Membership.current`: the account must be there, with the password that it had."""
        if _stamp(self._path) != self._stamp:
            await asyncio.to_thread(self._refresh)
        hashed = self._accounts.get(identity.name)
        if hashed is None or _proof(hashed) != identity.proof:
            return None
        return self._identity(identity.name, hashed)

    def stamp(self) -> object:
        """See `Membership.stamp`."""
        return _stamp(self._path)

    def _refresh(self) -> None:
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        try:
            self.load()
        except ConfigError as error:
            telemetry.log.error("accounts not reloaded", reason=str(error))
        # an unusable file is logged once, not at each request
        self._stamp = stamp


def costs_to_spend(hashed: str | None, accounts: Iterable[str]) -> list[int]:
    """The costs of further bcrypt hashes after a refusal, so that every refusal takes as long as for the most costly
    account.

    `hashed` is the hash that was compared, None if there is no such account. A hash of cost n takes 2^n steps, so after
    one of cost 9 among accounts of at most 12, hashes of cost 9, 10 and 11 make up the difference exactly. Without
    this, the time of a refusal would reveal which names exist.
    """
    highest = max(map(_cost, accounts), default=_cost(_DUMMY))
    return [highest] if hashed is None else list(range(_cost(hashed), highest))


@lru_cache(_MOST)
def _proof(hashed: str) -> str:
    """What names a password without revealing it: another password, or another hash of it, has another one."""
    return hashlib.sha256(hashed.encode()).hexdigest()[:32]


def _cost(hashed: str) -> int:
    return int(hashed[4:6])


def _matches(password: bytes, hashed: str) -> bool:
    try:
        return bcrypt.checkpw(password, hashed.encode())
    except ValueError:
        return False


def _stamp(path: Path) -> tuple[int, ...] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
