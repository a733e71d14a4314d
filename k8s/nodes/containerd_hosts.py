"""Tells a node's containerd to pull through the mirror, or no longer to.

    containerd_hosts.py keep    write the files, put back what is changed or lost, until SIGTERM; the files stay then
    containerd_hosts.py undo    remove them, and wait for SIGTERM
    containerd_hosts.py check   exit status 0 if every file is as `keep` (or, with --gone, as `undo`) wants it

                    keep                              undo
    no hosts.toml ────────> ours, beginning with MARKER ────> no hosts.toml, no folder if it is empty
    of others    ─ left alone, named in the log, and `check` fails ─

containerd reads these files at each pull (config_path of its configuration): it is neither restarted nor asked. A file
without our marker is never touched. Files are written whole, under another name first. With nothing but Python's own
library, for it runs from a ConfigMap in any image that has Python.

The files are those of `mirror configure containerd`, but for the marker.

Environment: MIRROR_URL; REGISTRIES, names with spaces between, `_default` for all; FALLBACK, `yes` or `no`; CERTS_D,
the folder.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

MARKER = "# Written by registry-mirror's nodes DaemonSet; to be rid of it, apply k8s/nodes-undo."
#: Seconds between two looks at the files.
EVERY = 60
#: Folders of containerd's are called after registries, with or without a port.
NAME = re.compile(r"_default|[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[0-9]{1,5})?")
#: Files under this name are ours and half written: a crash has left them.
LEFTOVER = ".registry-mirror-"
URL = re.compile(r"https?://(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+)(:[0-9]{1,5})?")


class Refused(Exception):
    """The environment is unusable; the message says which part."""


def hosts_toml(url: str, fallback: bool = True) -> str:
    """One file. Without `server`, containerd goes on to the registry itself where the mirror does not answer; with
    it the mirror takes the registry's place.
    """
    # older containerd passes over dial_timeout: there it is half a minute
    options = ('capabilities = ["pull", "resolve"]', 'dial_timeout = "3s"')
    server = "" if fallback else "".join(f"{line}\n" for line in (f'server = "{url}"', *options, ""))
    return f'{MARKER}\n{server}[host."{url}"]\n' + "".join(f"  {line}\n" for line in options)


def settings(environment: Mapping[str, str]) -> tuple[Path, str, list[str]]:
    """Folder, the text of each file, and registries. Raises `Refused`."""
    folder, url = Path(environment.get("CERTS_D", "/host/certs.d")), environment.get("MIRROR_URL", "")
    # an IPv6 address of a node comes without brackets
    url = re.sub(r"\A(https?://)([0-9a-fA-F]*:[0-9a-fA-F:]*:[0-9a-fA-F]*)(:[0-9]+)\Z", r"\1[\2]\3", url).rstrip("/")
    if not URL.fullmatch(url):
        raise Refused(f"MIRROR_URL is not http(s)://host[:port]: {url!r}")
    names = environment.get("REGISTRIES", "").split()
    wrong = [name for name in names if not NAME.fullmatch(name)]
    if wrong or not names:
        raise Refused(f"REGISTRIES: not the name of a registry: {', '.join(wrong) or 'it is empty'}")
    if not folder.is_dir():
        raise Refused(f"CERTS_D: {folder} is no folder")
    if (fallback := environment.get("FALLBACK", "yes")) not in ("yes", "no"):
        raise Refused(f"FALLBACK is neither yes nor no: {fallback!r}")
    return folder, hosts_toml(url, fallback == "yes"), names


def read(file: Path) -> str | None:
    """None if it is not there. Something unreadable is somebody's, and not ours."""
    try:
        return file.read_text(errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"unreadable: {error}"


def is_ours(text: str | None) -> bool:
    """Whether we may change it."""
    return text is not None and text.startswith(MARKER)


def write_whole(file: Path, text: str) -> None:
    """containerd sees the old file or the new one, also after a crash of the node."""
    file.parent.mkdir(mode=0o755, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=LEFTOVER, dir=file.parent)
    try:
        with open(descriptor, "w") as output:
            output.write(text)
            os.fchmod(descriptor, 0o644)
            output.flush()
            os.fsync(descriptor)
        os.replace(temporary, file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    for folder in (file.parent, file.parent.parent):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def ours(folder: Path) -> list[Path]:
    """Every file that we have written, also for registries that are no longer wanted."""
    return [file for file in sorted(folder.glob("*/hosts.toml")) if is_ours(read(file))]


def remove(file: Path) -> None:
    """The file, and its folder if nothing else is there."""
    file.unlink(missing_ok=True)
    try:
        file.parent.rmdir()
    except OSError:
        return  # certificates of others, for example


def leftovers(folder: Path) -> list[Path]:
    """What crashes have left. One process at a time works on a node, so none of it is being written."""
    return sorted(folder.glob(f"*/{LEFTOVER}*"))


def apply(folder: Path, wanted: str, names: Sequence[str]) -> list[str]:
    """Have every file as it should be; returns a line about each change and each file that is not ours."""
    said = []
    for file in leftovers(folder):
        remove(file)
    for name in names:
        file = folder / name / "hosts.toml"
        now = read(file)
        if now == wanted:
            continue
        if now is not None and not is_ours(now):
            said.append(f"left alone, it is not ours: {file}")
            continue
        write_whole(file, wanted)
        said.append(f"wrote {file}")
    for file in ours(folder):
        if file.parent.name not in names:
            remove(file)
            said.append(f"removed {file}: not in REGISTRIES any more")
    if "_default" in names:
        others = [file for file in sorted(folder.glob("*/hosts.toml")) if file.parent.name not in names]
        said += [f"not through the mirror, it has settings of its own: {file.parent.name}" for file in others]
    return said


def undo(folder: Path) -> list[str]:
    """Remove every file of ours; returns a line about each."""
    said = []
    for file in [*ours(folder), *leftovers(folder)]:
        remove(file)
        said.append(f"removed {file}")
    return said


def wrong(folder: Path, wanted: str, names: Sequence[str]) -> list[str]:
    """What is not as `apply` wants it."""
    return [f"not as it should be: {file}" for name in names if read(file := folder / name / "hosts.toml") != wanted]


def tell(said: Sequence[str], before: Sequence[str] = ()) -> None:
    """Print what was not said the last time."""
    for line in said:
        if line not in before:
            print(line, flush=True)


def main(arguments: Sequence[str]) -> int:
    """Exit status 0, 1 from `check`, 2 if the environment or the command is unusable."""
    ends = {signal.SIGTERM, signal.SIGINT}
    # held back, so that none comes while a file is written, and none is lost before `sigtimedwait`
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    try:
        folder, wanted, names = settings(os.environ)
    except Refused as error:
        print(error, file=sys.stderr)
        return 2
    match list(arguments):
        case ["keep"]:
            print(f"keeping {' '.join(names)} in {folder}", flush=True)
            before: list[str] = []
            while True:
                try:
                    said = apply(folder, wanted, names)
                except OSError as error:
                    said = [f"failed, trying again: {error}"]
                tell(said, before)
                before = said
                if signal.sigtimedwait(ends, EVERY):
                    return 0
        case ["undo"]:
            tell(undo(folder))
            print("done: nothing of ours is left", flush=True)
            signal.sigwait(ends)
            return 0
        case ["check"]:
            found = wrong(folder, wanted, names)
        case ["check", "--gone"]:
            found = [f"still there: {file}" for file in [*ours(folder), *leftovers(folder)]]
        case _:
            print("keep, undo, check or check --gone", file=sys.stderr)
            return 2
    tell(found)
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
