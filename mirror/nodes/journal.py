"""Records what was done to a client's files, so that it can be repeated, changed and undone.

    untouched ── apply ──> ours ── apply, other wishes ──> ours
        ^                   │ │
        └────── undo ───────┘ └── the user edits ──> edited ── undo: refused, shows the difference
                                                       ├── apply that changes it: merged into the user's text, and
                                                       │                          never undone
                                                       └── apply that does not: left as the user wrote it

The journal is a file in the folder of the client's configuration (`mirror-configure.json`, readable by its owner only).
It is written before the client's files are. After a crash in between, the same command completes the change, or `undo`
takes back the part that was done. While a file is ours, plans are made from its text before our first change, so a new
plan leaves no trace of an older one.
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

_NAME: Final = "mirror-configure.json"

#: Values after these words are secrets. Differences are printed, and may end up in the logs of the calling program.
_SECRET: Final = re.compile(
    r"""(?i)((?:password|passwd|secret|auth|authorization|(?:identity|registry)?_?token)["']?[ \t]*[:=][ \t]*)\S.*"""
    r"""|(//)[^/@\s]*@"""
)


@dataclass(frozen=True, slots=True)
class _Entry:
    """The record of one file.

    `backup` is the copy of the file before our first change; None if there was no such file. `written` are the texts
    that we may have left in the file: the last one, and after a crash the one that was being written. `edited`: the
    user had changed the file when we wrote it again. `needs` as in `Change`.
    """

    path: str
    backup: str | None
    written: tuple[str, ...]
    edited: bool = False
    needs: str = ""


@dataclass(frozen=True, slots=True)
class Difference:
    """The change of one file. `before` is None if the file is made, `after` is None if it is removed.

    `needs` is what makes the client read the file again.
    """

    path: str
    before: str | None = field(repr=False)
    after: str | None = field(repr=False)
    needs: str = ""
    secret: bool = False

    def unified(self) -> str:
        """The difference as `diff -u` shows it, without the values of secrets."""
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
    """A difference that was written to disk, and the path of the new backup, if one was made."""

    difference: Difference
    backup: str | None


def _without_secrets(line: str) -> str:
    return _SECRET.sub(lambda match: f"{match[1]}..." if match[1] else f"{match[2]}...@", line)


class Journal:
    """The journal of one client. As `Files`, it shows the files as they would be without our changes."""

    def __init__(self, disk: NodeFiles, client: Client) -> None:
        """Reads the journal, if there is one. Raises `NodeRefused` if it cannot be read."""
        self._disk = disk
        self._path = f"{client.home}/{_NAME}"
        self._entries: dict[str, _Entry] = {}
        #: The folders that we made.
        self._folders: set[str] = set()
        self._load()

    # ------------------------------------------------------------------------------------------- Files

    def text(self, path: str) -> str | None:
        """The text of a file without our changes; its present text if the user has edited it since."""
        current = self._disk.text(path)
        entry = self._entries.get(path)
        return current if entry is None or not self._is_ours(entry, current) else self._before(entry)

    def names(self, folder: str) -> Sequence[str]:
        """The present names in a folder."""
        return self._disk.names(folder)

    # ----------------------------------------------------------------------------------------- forwards

    def differences(self, plan: FilePlan) -> list[Difference]:
        """What `apply` would change. Files of an earlier plan that this plan does not name are restored, except those
        that the user has edited since (see `left_unchanged`).
        """
        changed = [
            Difference(change.path, before, change.content, change.needs, change.secret)
            for change in plan.changes
            if (before := self._disk.text(change.path)) != change.content
        ]
        return changed + self._backwards(self._dropped(plan))[0]

    def left_unchanged(self, plan: FilePlan) -> list[str]:
        """Notes about files of an earlier plan that `apply` does not restore, because the user has edited them."""
        _, edited = self._backwards(self._dropped(plan))
        return [f"{entry.path}: was edited since configure wrote it, and is left unchanged" for entry in edited]

    def _dropped(self, plan: FilePlan) -> list[_Entry]:
        named = {change.path for change in plan.changes}
        return [entry for entry in self._entries.values() if entry.path not in named]

    def apply(self, plan: FilePlan, now: float) -> list[Done]:
        """Carries out a plan. Blocking. `now` is in seconds since the epoch.

        Raises `NodeRefused`. Nothing or a part is done then, and a repetition completes it.
        """
        differences = self.differences(plan)
        by_path = {change.path: change for change in plan.changes}
        stamp = f"{datetime.fromtimestamp(now, UTC):%Y%m%dT%H%M%SZ}"
        backups: dict[str, str | None] = {}
        try:
            for difference in differences:
                self._disk.sweep(difference.path)
                if difference.path in by_path:
                    self._folders.update(self._disk.missing(difference.path))
                    entry, backups[difference.path] = self._prepare(difference, stamp)
                    self._entries[difference.path] = entry
            if differences:
                self._save()
        except NodeRefused:
            # the disk may be full: remove the backups that the journal on disk does not name, since `undo` never would
            recorded = self._disk.text(self._path) or ""
            for copy in filter(None, backups.values()):
                if json.dumps(copy) not in recorded:
                    self._disk.remove(copy)
            raise
        for difference in differences:
            if (change := by_path.get(difference.path)) is None:
                self._restore(self._entries[difference.path])
                del self._entries[difference.path]
                continue
            self._disk.write(difference.path, change.content, secret=change.secret)
            self._entries[difference.path] = replace(self._entries[difference.path], written=(change.content,))
        if differences:
            self._remove_folders()
            self._save()
        return [Done(difference, backups.get(difference.path)) for difference in differences]

    def _prepare(self, difference: Difference, stamp: str) -> tuple[_Entry, str | None]:
        """The entry of a file that is about to be written, and the path of the backup that was made for it, if any."""
        entry = self._entries.get(difference.path)
        ours = entry is not None and self._is_ours(entry, difference.before)
        backup = None
        if difference.before is not None and not ours:
            backup = self._disk.copy(difference.path, f"{difference.path.rpartition('/')[2]}.before-mirror-{stamp}")
        if entry is None:
            return _Entry(difference.path, backup, (str(difference.after),), needs=difference.needs), backup
        return replace(entry, written=(*entry.written, str(difference.after)), edited=entry.edited or not ours), backup

    # ---------------------------------------------------------------------------------------- backwards

    def undoing(self) -> list[Difference]:
        """What `undo` would change. If a file is not as we left it, raises `NodeRefused` with the difference."""
        differences, edited = self._backwards(list(self._entries.values()))
        if edited:
            edits = [self._describe_edit(entry, self._disk.text(entry.path)) for entry in edited]
            raise NodeRefused("\n".join([*edits, "nothing was undone"]))
        return differences

    def undo(self) -> list[Done]:
        """Restores every file as it was before our first change, and removes those that we made. Returns what was done.

        Raises `NodeRefused` before anything is done if a file is not as we left it.
        """
        differences = self.undoing()
        for entry in self._entries.values():
            self._restore(entry)
            self._disk.sweep(entry.path)
        self._disk.remove(self._path)
        self._disk.sweep(self._path)
        self._remove_folders()
        self._entries, self._folders = {}, set()
        return [Done(difference, None) for difference in differences]

    def _backwards(self, entries: list[_Entry]) -> tuple[list[Difference], list[_Entry]]:
        """The changes that restore these files, and the entries of those files that are not as we left them."""
        restored, edited = [], []
        for entry in entries:
            current = self._disk.text(entry.path)
            if not self._is_ours(entry, current):
                edited.append(entry)
                continue
            before = self._before(entry)
            if current != before:
                restored.append(Difference(entry.path, current, before, entry.needs))
        return restored, edited

    def _describe_edit(self, entry: _Entry, current: str | None) -> str:
        backup = f"; backup of the original: {entry.backup}" if entry.backup else "; the file did not exist before"
        if entry.edited:
            return f"{entry.path}: was edited between two runs of configure; correct it, then undo again{backup}"
        if current in entry.written or current == "":
            return f"{entry.path}: cannot be undone, because its backup is missing or was changed{backup}"
        shown = Difference(entry.path, entry.written[-1], current).unified()
        return f"{entry.path}: was changed since{backup}\n{shown}"

    def _restore(self, entry: _Entry) -> None:
        before = self._before(entry)
        if before is None:
            self._disk.remove(entry.path)
        elif self._disk.text(entry.path) != before:
            self._disk.write(entry.path, before, like=entry.backup)
        if entry.backup is not None:
            self._disk.remove(entry.backup)

    def _remove_folders(self) -> None:
        """Removes the folders that we made if they are empty, the innermost first."""
        for folder in sorted(self._folders, key=len, reverse=True):
            self._disk.remove_folder(folder)

    # ---------------------------------------------------------------------------------------- the record

    def _is_ours(self, entry: _Entry, current: str | None) -> bool:
        """True if the file is as it was before our first change, or as we left it and never edited by the user in
        between. False if its backup is gone.
        """
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
            for file in record["files"]:
                path, written = str(file["path"]), tuple(map(str, file["written"]))
                entry = _Entry(path, file["backup"], written, bool(file["edited"]), str(file["needs"]))
                self._entries[path] = entry
            self._folders = set(map(str, record["folders"]))
        except (ValueError, KeyError, TypeError) as error:
            raise NodeRefused(f"{self._path}: cannot be read; remove it if its changes are to stay") from error

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
    """What must be done so that the client sees the changes, without repetitions."""
    return list(dict.fromkeys(change.needs for change in changes if change.needs))
