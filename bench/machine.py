"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bench.process import program


def filesystem(path: Path) -> str:
    """The type of the file system that holds a path: `ext4`, `tmpfs`, …"""
    found = ("", "unknown")
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount, kind, *_ = line.split()
        if path.is_relative_to(mount) and len(mount) >= len(found[0]):
            found = mount, kind
    return found[1]


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
