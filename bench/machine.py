"""What the figures were measured on."""

from __future__ import annotations

import hashlib
import mmap
import os
import platform
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from bench.process import BenchFailed, program

_PAGE: Final = 4096
_STEP: Final = 64 << 20
#: Bytes that a hashing thread reads at a time; about what the mirror's own does.
_CHUNK: Final = 1 << 20


def touch_memory(size: int) -> None:
    """Write to `size` bytes of memory that nobody uses, and give them back; at most to most of what is free: what the
    kernel remembers of files is to stay.

    To be called directly before each measurement of a system that will write much. A hypervisor may take free pages
    from a guest after about two seconds (free page reporting), and the first write to such a page costs more, because
    the hypervisor has to find another one: about 1 s of the processor for each GiB, which counts as that of whoever
    writes. A system that starts slowly would pay for it, and one that starts at once would not.
    """
    rest = min(size, os.sysconf("SC_AVPHYS_PAGES") * _PAGE * 3 // 4)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    with mmap.mmap(-1, max(rest, _PAGE), flags=flags) as memory:
        for start in range(0, rest - _PAGE, _STEP):
            end = min(start + _STEP, rest)
            memory[start:end:_PAGE] = b"x" * len(range(start, end, _PAGE))


def hash_alone(path: Path) -> float:
    """Seconds of the processor that one thread takes to read a file from the page cache and hash it with SHA-256."""
    _hash(path)  # brings it into the page cache
    before = time.thread_time()
    _hash(path)
    return time.thread_time() - before


def _hash(path: Path) -> None:
    hasher, buffer = hashlib.sha256(), memoryview(bytearray(_CHUNK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            hasher.update(buffer[:count])


def filesystem(path: Path) -> str:
    """The type of the file system that holds a path: `ext4`, `tmpfs`, …"""
    found = ("", "unknown")
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount, kind, *_ = line.split()
        if path.is_relative_to(mount) and len(mount) >= len(found[0]):
            found = mount, kind
    return found[1]


@contextmanager
def private_directory(place: Path | None) -> Iterator[Path]:
    """An empty directory below `place` (None: where temporary files are), deleted afterwards.

    Raises `BenchFailed` if it is in memory: no figure of a disk could be measured there.
    """
    with tempfile.TemporaryDirectory(prefix="mirror-bench-", dir=place) as name:
        if filesystem(Path(name)) == "tmpfs":
            raise BenchFailed(f"{name} is memory; choose a directory on a disk with --dir")
        yield Path(name)


def facts(directory: Path) -> dict[str, str]:
    """Name and value of everything that a reader needs to place the figures."""
    processor = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s*(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return {
        "cores": f"{os.cpu_count()} ({processor[1] if processor else platform.machine()})",
        "memory": f"{int(memory[1]) / 1048576:.0f} GiB" if memory else "unknown",
        "kernel": platform.release(),
        "file system": filesystem(directory),
        "python": platform.python_version(),
        **{name: _package(name) for name in ("aiohttp", "uvloop")},
        "nginx": _said("nginx", "-v"),
        "docker-registry": _said("docker-registry", "--version"),
    }


def _package(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _said(name: str, option: str) -> str:
    done = subprocess.run([program(name), option], capture_output=True, text=True, check=False)
    found = re.search(r"\d+\.\d+\.\d+\S*", done.stdout + done.stderr)
    return found[0] if found else "unknown"
