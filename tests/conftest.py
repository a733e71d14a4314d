"""What every test of this tree has in common."""

from __future__ import annotations

import shutil
import signal
import subprocess

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # a shell that starts a run in the background has SIGINT ignored, and the programs that are tested inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)

#: Programs that the tests start, with what makes them say their version.
_PROGRAMS = {
    "buildah": "--version",
    "containerd": "--version",
    "docker-registry": "--version",
    "dockerd": "--version",
    "podman": "--version",
    "redis-server": "--version",
    "skopeo": "--version",
    "umoci": "--version",
}


def pytest_report_header() -> list[str]:
    """Which peers this run was made with: what a failure means depends on it."""
    found = []
    for name, option in _PROGRAMS.items():
        path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
        said = subprocess.run([path, option], capture_output=True, text=True, check=False).stdout if path else ""
        found.append(f"{name}: {said.splitlines()[0] if said else 'missing'}")
    return found
