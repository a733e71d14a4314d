"""A base image made of this machine's own Python: what `docker.io/library/python` has, as far as a build needs it.

The interpreter, its library, pip, the shared libraries of all of them, and a few programs; each file lies where it lies
here, so that the interpreter finds itself.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from tests.support.images import Published, Pusher
from tests.support.process import program, run

#: Parts of Python's library that no build needs.
_UNWANTED: Final = {
    "__pycache__",
    "site-packages",
    "dist-packages",
    "test",
    "idlelib",
    "tkinter",
    "lib2to3",
    "turtledemo",
}
#: What a Dockerfile calls, and a hook of Kubernetes.
_PROGRAMS: Final = ("sh", "install", "sleep")

_LOOK: Final = "import os, pip, sysconfig; print(sysconfig.get_path('stdlib')); print(os.path.dirname(pip.__file__))"


def publish_python(url: str, repository: str, tag: str, *, libraries: Iterable[Path]) -> Published:
    """Push it to the registry at `url`, with the shared libraries that these compiled modules need too."""
    interpreter = Path(os.path.realpath(sys.executable))
    library, pip = (Path(line) for line in run([interpreter, "-c", _LOOK]).decode().split())
    programs = {f"/bin/{name}": Path(program(name)) for name in _PROGRAMS}
    compiled = [interpreter, *programs.values(), *(library / "lib-dynload").glob("*.so"), *libraries]
    files = {str(interpreter.with_name("python3")): interpreter}
    files |= {str(file): file for folder in (library, pip) for file in _files(folder)}
    files |= {name: Path(name) for name in _shared_libraries(compiled)}
    files |= programs
    layer = {name.lstrip("/"): file.read_bytes() for name, file in sorted(files.items())}
    layer |= {f"{folder}/.keep": b"" for folder in ("dev", "proc", "sys", "tmp", "root", "var/lib")}
    layer |= {"etc/passwd": b"root:x:0:0:root:/root:/bin/sh\n", "etc/group": b"root:x:0:\n"}
    config = {"Env": [f"PATH={interpreter.parent}:/usr/local/bin:/usr/bin:/bin"], "Cmd": ["python3"]}
    with Pusher(url, repository) as pusher:
        return pusher.tag("docker.io", tag, pusher.image([layer], config=config))


def _files(folder: Path) -> list[Path]:
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in _UNWANTED and not name.startswith("config-")]
        found += [Path(place, name) for name in names if Path(place, name).is_file()]
    return found


def _shared_libraries(compiled: Iterable[Path]) -> set[str]:
    """As the dynamic linker of this machine finds them."""
    said = run(["ldd", *compiled]).decode()
    return set(re.findall(r"(?:=> |^\t)(/\S+) \(0x", said, re.MULTILINE))
