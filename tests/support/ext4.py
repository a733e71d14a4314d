"""An ext4 filesystem on a loop device whose power can be cut.

    with Ext4(directory) as disk:          # disk.mount_point
        disk.cut()                         # FS_IOC_SHUTDOWN: nothing more reaches it, not even what is in memory
        ... end the processes that use it ...
        disk.remount()                     # the state that a machine finds when the power is back

The ioctl with flag 2 (no log flush) forgets everything that was not synced, as a power cut does; a rename without an
fsync then leaves files full of zeros. Needs root, loop devices and mkfs.ext4.
"""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path
from types import TracebackType
from typing import Final

from tests.support.process import run

FS_IOC_SHUTDOWN: Final = 0x8004587D
NO_LOG_FLUSH: Final = struct.pack("i", 2)


def refusal() -> str | None:
    """Why this machine cannot do it; None if it can."""
    if not Path("/dev/loop-control").exists():
        return "the kernel has no loop devices here"
    if "\text4\n" not in Path("/proc/filesystems").read_text():
        return "the kernel has no ext4 here"
    if os.geteuid() != 0:
        return "mounting takes root"
    return None


class Ext4:
    """`size` in bytes; the image is a sparse file in `directory`."""

    def __init__(self, directory: Path, *, size: int = 96 << 20) -> None:
        self._directory = directory
        self._number = 0
        self.mount_point = directory / "disk"
        self._size = size

    def cut(self) -> None:
        """The power is gone: every later access fails."""
        descriptor = os.open(self.mount_point, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(descriptor, FS_IOC_SHUTDOWN, NO_LOG_FLUSH)
        finally:
            os.close(descriptor)

    def remount(self) -> None:
        """The power is back. What was on the disk is mounted as a copy: a container that began meanwhile has the old
        mount in its own namespace, and the kernel would give us that dead one again.
        """
        before = self._image
        self._unmount()
        self._number += 1
        run(["cp", "--sparse=always", before, self._image])
        before.unlink()
        self._mount()

    @property
    def _image(self) -> Path:
        return self._directory / f"disk-{self._number}.img"

    def _mount(self) -> None:
        run(["mount", "-o", "loop", self._image, self.mount_point])

    def _unmount(self) -> None:
        run(["umount", "--lazy", self.mount_point])

    def __enter__(self) -> Ext4:
        self.mount_point.mkdir()
        with self._image.open("wb") as file:
            file.truncate(self._size)
        run(["mkfs.ext4", "-q", "-F", self._image])
        self._mount()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._unmount()
        self._image.unlink()
