"""A filesystem on which a folder has a quota, in whatever room there is beside it.

    with quota(directory, 20 << 20) as folder:       # writes of more than 20 MiB below it end with EDQUOT
        set_quota(folder, 60 << 20)

btrfs, because its quotas also bind root, and those of ext4 and XFS are missing in many kernels. Needs root, loop
devices and btrfs-progs.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.support.process import run

#: Bytes of the whole filesystem: more than any quota, and about the least that btrfs works with.
_SIZE: Final = 1 << 30


def refusal() -> str | None:
    """Why this machine cannot do it; None if it can."""
    if not Path("/dev/loop-control").exists():
        return "the kernel has no loop devices here"
    if "\tbtrfs\n" not in Path("/proc/filesystems").read_text():
        return "the kernel has no btrfs here"
    if shutil.which("mkfs.btrfs") is None:
        return "btrfs-progs is not installed"
    if os.geteuid() != 0:
        return "mounting takes root"
    return None


@contextmanager
def quota(directory: Path, size: int) -> Iterator[Path]:
    """A folder of a filesystem that is mounted below `directory`, with a quota of `size` bytes."""
    image, point = directory / "quota.img", directory / "quota"
    point.mkdir()
    with image.open("wb") as file:
        file.truncate(_SIZE)
    run(["mkfs.btrfs", "-q", image])
    run(["mount", "-o", "loop", image, point])
    try:
        folder = point / "limited"
        run(["btrfs", "quota", "enable", point])
        run(["btrfs", "subvolume", "create", folder])
        set_quota(folder, size)
        yield folder
    finally:
        run(["umount", "--lazy", point])
        image.unlink()


def set_quota(folder: Path, size: int) -> None:
    """From now on the quota is `size` bytes."""
    run(["btrfs", "qgroup", "limit", str(size), folder])
