"""What was done to a client's files, so that it can be done once, done again differently, and taken back.

    untouched ── apply ──> ours ── apply, other wishes ──> ours
        ^                   │ │
        └────── undo ───────┘ └── somebody edits ──> edited ── undo: refused, shows the difference
                                                       ├── apply that changes it: merged into what they wrote, and
                                                       │                          never undone
                                                       └── apply that does not: left as they wrote it

The journal lies in the folder of the client's configuration (`mirror-configure.json`, readable by root alone) and is
written before the files are: after a crash in between, the same command goes on, or `undo` takes back what there is.
While a file is ours, plans are made from what it was before us: wishes that changed leave no trace of the old ones.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final

from mirror.nodes.disk import NodeFiles
from mirror.nodes.plan import Change, Client, FilePlan, NodeRefused

__all__ = ["Difference", "Done", "Journal", "needed"]

_NAME: Final = "mirror-configure.json"

#: Words after which a value is nobody's business. Differences are shown, and kept in logs of whatever ran this.
_SECRET: Final = re.compile(
    r"""(?i)((?:password|passwd|secret|auth|authorization|(?:identity|registry)?_?token)["']?[ \t]*[:=][ \t]*)\S.*"""
    r"""|(//)[^/@\s]*@"""
)


@dataclass(frozen=True, slots=True)
class _Entry:
    """One file. `backup` is what it was before us, None: there was none. `written` is what we may have left there.

    `edited`: somebody had changed it when we wrote again. `needs` as in `Change`.
    """

    path: str
    backup: str | None
    written: tuple[str, ...]
    edited: bool = False
    needs: str = ""


@dataclass(frozen=True, slots=True)
class Difference:
    """What happens to a file: None where it is made or removed. `needs` is what makes the client see it."""

    path: str
    before: str | None = field(repr=False)
    after: str | None = field(repr=False)
    needs: str = ""
    secret: bool = False

    def unified(self) -> str:
        """As `diff -u` shows it, without the values of secrets."""
        lines = difflib.unified_diff(
            (self.before or "").splitlines(),
            (self.after or "").splitlines(),
            self.path if self.before is not None else "/dev/null",
            self.path if self.after is not None else "/dev/null",
            lineterm="",
        )
        return "\n".join(_without_secrets(line) for line in lines)


@dataclass(frozen=True, slots=True)
class Done:
    """A difference that is now on the disk, and where the file as it was before is kept."""

    difference: Difference
    backup: str | None


def _without_secrets(line: str) -> str:
    return _SECRET.sub(lambda found: f"{found[1]}..." if found[1] else f"{found[2]}...@", line)


class Journal:
    """Of one client's folder. It is `Files` as well: the files as they would be without us."""

    def __init__(self, disk: NodeFiles, client: Client) -> None:
        """Raises `NodeRefused` where the journal is there but cannot be read."""
        self._disk = disk
        self._path = f"{client.home}/{_NAME}"
        self._entries: dict[str, _Entry] = {}
        #: Those that we made.
        self._folders: set[str] = set()
        self._load()

    # ------------------------------------------------------------------------------------------- Files

    def text(self, path: str) -> str | None:
        """What a file was before us; as it is where somebody has changed it since."""
        current = self._disk.text(path)
        entry = self._entries.get(path)
        return current if entry is None or not self._is_ours(entry, current) else self._before(entry)

    def names(self, folder: str) -> Sequence[str]:
        """What is in a folder."""
        return self._disk.names(folder)

    # ----------------------------------------------------------------------------------------- forwards

    def differences(self, plan: FilePlan) -> list[Difference]:
        """What `apply` would do. Files of an earlier plan that this one does not name go back to what they were, but
        for those that somebody has edited since (see `left`).
        """
        found = [
            Difference(change.path, before, change.content, change.needs, change.secret)
            for change in plan.changes
            if (before := self._disk.text(change.path)) != change.content
        ]
        return found + self._backwards(self._no_more_named(plan))[0]

    def left(self, plan: FilePlan) -> list[str]:
        """Notes about the files that `apply` leaves as they are, because somebody has edited them."""
        _, edited = self._backwards(self._no_more_named(plan))
        return [f"{entry.path}: was edited since configure wrote it, and is left as it is" for entry in edited]

    def _no_more_named(self, plan: FilePlan) -> list[_Entry]:
        named = {change.path for change in plan.changes}
        return [one for one in self._entries.values() if one.path not in named]

    def apply(self, plan: FilePlan, now: float) -> list[Done]:
        """Blocking; `now` in seconds since the epoch. Raises `NodeRefused`; nothing or a part is done then, and doing
        it again goes on.
        """
        differences = self.differences(plan)
        by_path = {change.path: change for change in plan.changes}
        stamp = f"{datetime.fromtimestamp(now, UTC):%Y%m%dT%H%M%SZ}"
        backups: dict[str, str | None] = {}
        try:
            for one in differences:
                self._disk.sweep(one.path)
                if one.path in by_path:
                    self._folders.update(self._disk.missing(one.path))
                    entry, backups[one.path] = self._prepare(one, stamp)
                    self._entries[one.path] = entry
            if differences:
                self._save()
        except NodeRefused:
            # a full disk, perhaps: nobody would ever be rid of copies that no journal knows
            known = self._disk.text(self._path) or ""
            for copy in filter(None, backups.values()):
                if json.dumps(copy) not in known:
                    self._disk.remove(copy)
            raise
        for one in differences:
            if (change := by_path.get(one.path)) is None:
                self._restore(self._entries[one.path])
                del self._entries[one.path]
                continue
            self._disk.write(one.path, change.content, secret=change.secret)
            self._entries[one.path] = replace(self._entries[one.path], written=(change.content,))
        if differences:
            self._remove_folders()
            self._save()
        return [Done(one, backups.get(one.path)) for one in differences]

    def _prepare(self, one: Difference, stamp: str) -> tuple[_Entry, str | None]:
        """The entry of a file that is about to be written, and the backup that was made for it."""
        entry = self._entries.get(one.path)
        ours = entry is not None and self._is_ours(entry, one.before)
        backup = None
        if one.before is not None and not ours:
            backup = self._disk.copy(one.path, f"{one.path.rpartition('/')[2]}.before-mirror-{stamp}")
        if entry is None:
            return _Entry(one.path, backup, (str(one.after),), needs=one.needs), backup
        return replace(entry, written=(*entry.written, str(one.after)), edited=entry.edited or not ours), backup

    # ---------------------------------------------------------------------------------------- backwards

    def undoing(self) -> list[Difference]:
        """What `undo` would do. Raises `NodeRefused`, with what has changed, where a file is not as we left it."""
        differences, edited = self._backwards(list(self._entries.values()))
        if edited:
            strange = [self._strange(entry, self._disk.text(entry.path)) for entry in edited]
            raise NodeRefused("\n".join([*strange, "nothing was taken back"]))
        return differences

    def undo(self) -> list[Done]:
        """Every file as it was before us, every one that we made gone. Raises `NodeRefused`; nothing is done then."""
        differences = self.undoing()
        for entry in self._entries.values():
            self._restore(entry)
            self._disk.sweep(entry.path)
        self._disk.remove(self._path)
        self._disk.sweep(self._path)
        self._remove_folders()
        self._entries, self._folders = {}, set()
        return [Done(one, None) for one in differences]

    def _backwards(self, entries: list[_Entry]) -> tuple[list[Difference], list[_Entry]]:
        """What it takes to have these files as they were before us, and those that are not as we left them."""
        found, edited = [], []
        for entry in entries:
            current = self._disk.text(entry.path)
            if not self._is_ours(entry, current):
                edited.append(entry)
                continue
            before = self._before(entry)
            if current != before:
                found.append(Difference(entry.path, current, before, entry.needs))
        return found, edited

    def _strange(self, entry: _Entry, current: str | None) -> str:
        kept = f"; what it was before: {entry.backup}" if entry.backup else "; there was no such file before"
        if entry.edited:
            return f"{entry.path}: was edited between two runs of configure; put it right, then undo again{kept}"
        if current in entry.written or current == "":
            return f"{entry.path}: cannot be taken back, its backup is gone or was changed{kept}"
        shown = Difference(entry.path, entry.written[-1], current).unified()
        return f"{entry.path}: was changed since{kept}\n{shown}"

    def _restore(self, entry: _Entry) -> None:
        before = self._before(entry)
        if before is None:
            self._disk.remove(entry.path)
        elif self._disk.text(entry.path) != before:
            self._disk.write(entry.path, before, like=entry.backup)
        if entry.backup is not None:
            self._disk.remove(entry.backup)

    def _remove_folders(self) -> None:
        """Those that we made and that are empty, the innermost first."""
        for folder in sorted(self._folders, key=len, reverse=True):
            self._disk.remove_folder(folder)

    # ---------------------------------------------------------------------------------------- the record

    def _is_ours(self, entry: _Entry, current: str | None) -> bool:
        """Whether a file is as we left it, or as it was before us, and its past is known."""
        before = self._before(entry)
        if entry.backup is not None and before is None:
            return False
        return current == before or (current in entry.written and not entry.edited)

    def _before(self, entry: _Entry) -> str | None:
        return None if entry.backup is None else self._disk.text(entry.backup)

    def _load(self) -> None:
        text = self._disk.text(self._path)
        if text is None:
            return
        try:
            record: dict[str, Any] = json.loads(text)
            for one in record["files"]:
                path, written = str(one["path"]), tuple(map(str, one["written"]))
                entry = _Entry(path, one["backup"], written, bool(one["edited"]), str(one["needs"]))
                self._entries[path] = entry
            self._folders = set(map(str, record["folders"]))
        except (ValueError, KeyError, TypeError) as error:
            raise NodeRefused(f"{self._path}: cannot be read; remove it if its changes shall stay for good") from error

    def _save(self) -> None:
        if not self._entries:
            self._disk.remove(self._path)
            return
        record = {
            "files": [asdict(entry) for entry in self._entries.values()],
            "folders": sorted(self._folders),
        }
        self._disk.write(self._path, json.dumps(record, indent=1) + "\n", secret=True)


def needed(changes: Sequence[Change | Difference]) -> list[str]:
    """What has to be done for the client to see them, each once."""
    return list(dict.fromkeys(one.needs for one in changes if one.needs))
