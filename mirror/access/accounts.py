"""Changes of an htpasswd file: accounts are added, changed and removed, one at a time.

The file is replaced as a whole, so that a reader sees all of the old or all of the new one, and keeps its owner and
mode. Comments and the other accounts stay as they are. Two changes at once are made one after the other: each holds the
lock of the folder.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import bcrypt

from mirror.access.htpasswd import LONGEST_PASSWORD, parse_htpasswd
from mirror.errors import ConfigError, MirrorError, reason_of
from mirror.folders import sync_folder

#: A check then takes a tenth of a second of a core.
_COST: Final = 11
_LONGEST_NAME: Final = 255


def check_account_name(name: str) -> str:
    """Return the name of an account unchanged. Raises `ValueError` if an htpasswd file or a login cannot have it."""
    if not name or len(name) > _LONGEST_NAME or name != name.strip() or not name.isprintable():
        raise ValueError(f"not the name of an account: {name[:80]!r}")
    if ":" in name or name.startswith("#"):
        raise ValueError(f"the name of an account has no colon, and does not begin with #: {name[:80]!r}")
    return name


def check_password(password: str) -> str:
    """Return a password unchanged. Raises `ValueError`, without the password, if it cannot be used."""
    if not password:
        raise ValueError("the password is empty")
    if len(password.encode()) > LONGEST_PASSWORD:
        raise ValueError(f"the password has more than {LONGEST_PASSWORD} bytes, of which bcrypt would ignore the rest")
    if not password.isprintable():
        raise ValueError("the password has characters that cannot be typed at a login")
    return password


def set_account(path: Path, name: str, password: str, *, owner: tuple[int, int] | None = None) -> bool:
    """Blocking. Add an account, or change its password; True if the account is new. A file that does not exist is
    created with mode 0600, for `owner` (user and group) if this process may give it away.

    Raises `ValueError` for a name or password that cannot be used, `ConfigError` if the file is not valid, and
    `MirrorError` if it cannot be changed.
    """
    line = f"{check_account_name(name)}:{_hashed(check_password(password))}"

    def change(lines: list[str]) -> list[str]:
        places = [number for number, old in enumerate(lines) if _name(old) == name]
        return [line if number in places else old for number, old in enumerate(lines)] + ([] if places else [line])

    return name not in _change(path, change, owner)


def remove_account(path: Path, name: str) -> bool:
    """Blocking. Remove an account; False if there is none. Raises like `set_account`."""
    return name in _change(path, lambda lines: [line for line in lines if _name(line) != name], None)


def accounts(path: Path) -> list[str]:
    """Blocking. The names of the accounts, sorted; none if there is no file. Raises `ConfigError`, `MirrorError`."""
    with _errors(path):
        return sorted(_parsed(path, _read(path)))


def _change(path: Path, change: Callable[[list[str]], list[str]], owner: tuple[int, int] | None) -> dict[str, str]:
    """Replace the file by one with other lines. Returns the accounts that it had before."""
    # a link stays a link: the file that it leads to is replaced
    path = Path(os.path.realpath(path))
    with _errors(path), _only_change(path.parent):
        text = _read(path)
        before = _parsed(path, text)
        old = [] if text is None else text.splitlines()
        new = change(old)
        if new != old:
            _replace(path, "".join(f"{line}\n" for line in new), owner)
        return before


def _replace(path: Path, text: str, owner: tuple[int, int] | None) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    status = path.stat() if path.exists() else None
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "w") as file:
            if status is not None:
                owner = status.st_uid, status.st_gid
            if owner is not None and owner != (os.geteuid(), os.getegid()):
                os.fchown(descriptor, *owner)
            os.fchmod(descriptor, 0o600 if status is None else status.st_mode & 0o777)
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


@contextmanager
def _only_change(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MirrorError(f"{path}: {reason_of(error)}") from error


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: not text"]) from error


def _parsed(path: Path, text: str | None) -> dict[str, str]:
    try:
        return parse_htpasswd(text or "")
    except ValueError as error:
        raise ConfigError([f"{path}: {error}"]) from error


def _name(line: str) -> str | None:
    """The name in a line; None if it is a comment or empty."""
    return None if not line.strip() or line.startswith("#") else line.strip().partition(":")[0]


def _hashed(password: str) -> str:
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(_COST)).decode()
