"""Whether files that the configuration names can be read by this process, and why not."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from mirror.errors import reason_of


def unreadable(files: Mapping[str, Path | None]) -> list[str]:
    """A mistake for each of these files that cannot be read, by the name of its setting. Settings without a file are
    skipped.
    """
    return [
        f"{setting}: {path} cannot be read: {reason}"
        for setting, path in files.items()
        if path is not None and (reason := _why_unreadable(path))
    ]


def is_absent(path: Path) -> bool:
    """True if there is no such file; False also if a folder above it may not be entered."""
    try:
        path.stat()
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False
    return False


def is_readable(path: Path) -> bool:
    """True if the file can be opened and is no folder."""
    return not _why_unreadable(path)


def _why_unreadable(path: Path) -> str:
    try:
        # a pipe without a writer would be waited for
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        # a ValueError: a zero byte, which no path has
        return reason_of(error)
    os.close(descriptor)
    return "it is a folder" if path.is_dir() else ""
