"""Wheels of what this interpreter's environment has installed: what pip installs from, where it reaches no index."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement


def with_dependencies(names: Iterable[str]) -> list[Distribution]:
    """These distributions and all that they need here, with the extras that are asked for; each once."""
    found: dict[str, Distribution] = {}
    seen: set[str] = set()
    waiting = [Requirement(name) for name in names]
    while waiting:
        wanted = waiting.pop()
        if str(wanted) in seen:
            continue
        seen.add(str(wanted))
        one = distribution(wanted.name)
        found[re.sub(r"[-_.]+", "-", wanted.name).lower()] = one
        for line in one.requires or ():
            needed = Requirement(line)
            extras = [{"extra": extra} for extra in ("", *wanted.extras)]
            if needed.marker is None or any(needed.marker.evaluate(extra) for extra in extras):
                waiting.append(needed)
    return list(found.values())


def native_libraries(distributions: Iterable[Distribution]) -> list[Path]:
    """Their compiled modules."""
    return [
        Path(str(file.locate()))
        for one in distributions
        for file in one.files or ()
        if re.search(r"\.so(\.|$)", file.name)
    ]


def pack_wheels(distributions: Iterable[Distribution], folder: Path) -> None:
    """One wheel for each, of the files that its RECORD names; commands are left for pip to make anew."""
    for one in distributions:
        tags = re.findall(r"^Tag: (\S+)-(\S+)-(\S+)$", one.read_text("WHEEL") or "", re.MULTILINE)
        tag = "-".join(".".join(dict.fromkeys(parts)) for parts in zip(*tags, strict=True))
        name = re.sub(r"[-_.]+", "_", one.metadata["Name"])
        with zipfile.ZipFile(folder / f"{name}-{one.version}-{tag}.whl", "w") as wheel:
            for file in one.files or ():
                # commands lie outside, and what the installer noted down is its own
                if ".." not in file.parts and file.suffix != ".pyc" and file.name not in ("INSTALLER", "REQUESTED"):
                    wheel.write(str(file.locate()), str(file))
