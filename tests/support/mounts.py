"""Mounts: whether the kernel gives us overlays, and that none is left behind."""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from pathlib import Path

_MNT_DETACH = 2


def overlay_works(directory: Path) -> bool:
    """Whether an overlay can be mounted with its layers in `directory`; within a container often not."""
    place = Path(tempfile.mkdtemp(dir=directory))
    try:
        for name in ("lower", "upper", "work", "merged"):
            (place / name).mkdir()
        options = f"lowerdir={place}/lower,upperdir={place}/upper,workdir={place}/work"
        libc = ctypes.CDLL(None, use_errno=True)
        done = libc.mount(b"overlay", bytes(place / "merged"), b"overlay", 0, options.encode())
        if done != 0:
            return False
        libc.umount2(bytes(place / "merged"), _MNT_DETACH)
        return True
    finally:
        remove_tree(place)


def unmount_below(directory: Path) -> None:
    """Unmount everything under a directory, the deepest first. What a killed daemon left would outlive the tests."""
    libc = ctypes.CDLL(None, use_errno=True)
    inside = str(directory.resolve()) + os.sep
    # field 5 of a line is the mount point, with octal escapes (proc(5))
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [line.split()[4].encode().decode("unicode_escape") for line in lines]
    for point in sorted((point for point in points if (point + os.sep).startswith(inside)), key=len, reverse=True):
        libc.umount2(os.fsencode(point), _MNT_DETACH)


def remove_tree(directory: Path) -> None:
    """Unmount what lies below, then delete it all."""
    unmount_below(directory)
    shutil.rmtree(directory)
