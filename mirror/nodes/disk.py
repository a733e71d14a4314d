"""Reads and writes the machine's files below a root folder: text in, whole files out, with mode, owner and labels kept.

Paths are those that the client sees. Symbolic links are resolved below the root, as for a client that runs there: with
`--root /mnt/image` an absolute link leads into the image, never to a file of this machine.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Final

from mirror.errors import reason_of
from mirror.folders import sync_folder
from mirror.nodes.plan import NodeRefused

#: The number of symbolic links that the kernel follows on one path (path_resolution(7)).
_MOST_LINKS: Final = 40


class NodeFiles:
    """The `Files` of this machine, and methods that change them. All calls block."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root.absolute()

    def real(self, path: str) -> Path:
        """The path on this machine, with links resolved; nothing needs to exist there. Raises `NodeRefused`."""
        remaining = list(PurePosixPath(path).parts[1:])
        at, links = self._root, 0
        while remaining:
            part = remaining.pop(0)
            if part == "..":
                at = at.parent if at != self._root else at
                continue
            step = at / part
            if not step.is_symlink():
                at = step
                continue
            links += 1
            if links > _MOST_LINKS:
                raise NodeRefused(f"{path}: too many links")
            target = PurePosixPath(os.readlink(step))
            if target.is_absolute():
                at = self._root
            remaining = [*(part for part in target.parts if part != "/"), *remaining]
        return at

    def text(self, path: str) -> str | None:
        """The text of a file; None if the file does not exist. Raises `NodeRefused`, also if the text is not UTF-8."""
        with _refusing(path):
            try:
                return self.real(path).read_bytes().decode()
            except (FileNotFoundError, NotADirectoryError):
                return None
            except UnicodeDecodeError as error:
                raise NodeRefused(f"{path}: not UTF-8 (byte {error.start}); repair it first") from error

    def exists(self, path: str) -> bool:
        """True if there is a file or a folder."""
        return self.real(path).exists()

    def names(self, folder: str) -> list[str]:
        """The sorted names in a folder; empty if the folder does not exist. Raises `NodeRefused`."""
        with _refusing(folder):
            try:
                return sorted(os.listdir(self.real(folder)))
            except (FileNotFoundError, NotADirectoryError):
                return []

    def missing(self, path: str) -> list[str]:
        """The folders that must be made before a file can be written, the outermost first. Raises `NodeRefused`."""
        folders: list[str] = []
        for folder in PurePosixPath(path).parents:
            if self.real(str(folder)).is_dir():
                break
            folders.insert(0, str(folder))
        return folders

    def write(self, path: str, content: str, *, secret: bool = False, like: str | None = None) -> None:
        """Writes a file, whole or not at all. Missing folders are made.

        Mode, owner and labels are those of the existing file, or of `like` if it is given. A new file is readable by
        everyone. `secret` takes all rights from everyone but the owner. Raises `NodeRefused`.
        """
        with _refusing(path):
            real = self.real(path)
            for folder in self.missing(path):
                self.real(folder).mkdir(mode=0o755)
                sync_folder(self.real(folder).parent)
            model = real if like is None else self.real(like)
            _put(real, content.encode(), model if model.exists() else None, secret=secret)

    def copy(self, path: str, name: str) -> str:
        """Copies a file to `name` in the same folder, with mode and owner, and returns the path of the copy. If `name`
        exists, the copy is called `name.2`, and so on.

        Raises `NodeRefused`.
        """
        with _refusing(path):
            real = self.real(path)
            target = real.with_name(name)
            number = 1
            while target.exists():
                number += 1
                target = real.with_name(f"{name}.{number}")
            _put(target, real.read_bytes(), real)
            return "/" + str(target.relative_to(self._root))

    def sweep(self, path: str) -> None:
        """Removes the temporary files of a file and of its backups that crashes left behind, and no others."""
        real = self.real(path)
        temporary = re.compile(rf"\.{re.escape(real.name)}(\.before-mirror-[0-9TZ.]+)?\.[0-9a-f]{{16}}")
        with suppress(OSError):
            for name in filter(temporary.fullmatch, os.listdir(real.parent)):
                (real.parent / name).unlink()

    def remove(self, path: str) -> None:
        """Removes a file; may be repeated. Raises `NodeRefused`."""
        with _refusing(path):
            self.real(path).unlink(missing_ok=True)

    def remove_folder(self, path: str) -> None:
        """Removes a folder if it is empty. Errors are ignored."""
        with suppress(OSError):
            self.real(path).rmdir()


def _put(target: Path, content: bytes, model: Path | None, *, secret: bool = False) -> None:
    """Writes a file, whole or not at all, with owner, mode and labels of `model`. Without a model everyone can read the
    file.

    Raises `OSError`.
    """
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            if model is not None:
                _copy_metadata(model, file.fileno(), temporary)
            else:
                os.fchmod(file.fileno(), 0o644)
            if secret:
                os.fchmod(file.fileno(), stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o600)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(target.parent)


def _copy_metadata(model: Path, descriptor: int, target: Path) -> None:
    """Copies owner, mode and extended attributes (the labels of SELinux are among them)."""
    status = model.stat()
    with suppress(PermissionError):  # without root the file gets this user as owner, as with any editor
        os.fchown(descriptor, status.st_uid, status.st_gid)
    shutil.copystat(model, target)
    os.utime(target)


@contextmanager
def _refusing(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise NodeRefused(f"{path}: {reason_of(error)}") from error
