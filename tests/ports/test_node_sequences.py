"""Every order of apply, edit, apply and undo, for every client: a state machine over the files of a machine.

    start ── apply ──> ours ── edit ──> edited ── apply ──> edited, and the mirror is asked ── put right, undo ──> start

Whatever came before: `apply` succeeds, what it was told is what the client does, doing it again changes nothing, and
nothing that somebody wrote is lost. `undo` leads back to the start or, if somebody has edited a file of ours, changes
nothing and says so; it goes through as soon as the file is put right.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Final

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from mirror.nodes.clients import CLIENTS
from mirror.nodes.disk import NodeFiles
from mirror.nodes.journal import Journal
from mirror.nodes.plan import MirrorUrl, NodeRefused, Wanted

_URLS: Final = ("http://one.internal:5000", "https://two.internal", "https://one.internal:5000")
_PUBLIC: Final = ("docker.io", "ghcr.io", "quay.io")
_JOURNAL: Final = "mirror-configure.json"
_BACKUP: Final = ".before-mirror-"
_CONTAINERD: Final = 'version = 2\n\n[plugins."io.containerd.grpc.v1.cri"]\n  sandbox_image = "pause"\n'

#: What may be there before us: path and text.
_BEFORE: Final = {
    "docker": ("etc/docker/daemon.json", '{\n  "debug": true\n}\n'),
    "containerd": ("etc/containerd/config.toml", _CONTAINERD),
    "podman": ("etc/containers/registries.conf.d/10-site.conf", '[[registry]]\nlocation = "site.internal"\n'),
    "crio": ("etc/containers/registries.conf.d/10-site.conf", '[[registry]]\nlocation = "site.internal"\n'),
    "buildkit": ("etc/buildkit/buildkitd.toml", "debug = true\n"),
    "k3s": ("etc/rancher/k3s/registries.yaml", "mirrors:\n  site.internal: {}\n"),
    "rke2": ("etc/rancher/rke2/registries.yaml", "mirrors:\n  site.internal: {}\n"),
}


class Sequences(RuleBasedStateMachine):
    """One machine with one client."""

    def __init__(self, client: str) -> None:
        super().__init__()
        self.kind = CLIENTS[client]
        self.root = Path(mkdtemp())
        self.home = self.root / self.kind.home.lstrip("/")
        self.home.mkdir(parents=True)
        #: Files as they would be without us, by path.
        self.start: dict[str, str] = {}
        #: Files of ours that somebody has edited.
        self.edited: set[str] = set()
        #: What somebody wrote, and into which file.
        self.marks: dict[str, str] = {}
        self.steps = 0

    def teardown(self) -> None:
        """The machine goes."""
        shutil.rmtree(self.root)

    def journal(self) -> Journal:
        """As each command opens it."""
        return Journal(NodeFiles(self.root), self.kind)

    def entries(self) -> dict[str, str | None]:
        """The files that the journal knows, and the backup of each."""
        path = self.home / _JOURNAL
        known = json.loads(path.read_text())["files"] if path.exists() else []
        return {one["path"].lstrip("/"): one["backup"] and one["backup"].lstrip("/") for one in known}

    def files(self) -> dict[str, str]:
        """The client's files, without our journal and backups."""
        return {
            str(path.relative_to(self.root)): path.read_text()
            for path in sorted(self.root.rglob("*"))
            if path.is_file() and path.name != _JOURNAL and _BACKUP not in path.name
        }

    # ----------------------------------------------------------------------------------------------------- steps

    @initialize(there=st.booleans())
    def begin(self, there: bool) -> None:
        """With a file of somebody else, or none."""
        path, text = _BEFORE[self.kind.name]
        if there:
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            (self.root / path).write_text(text)
        self.start = self.files()

    @rule(url=st.sampled_from(_URLS), registries=st.sampled_from([(), ("docker.io",), ("ghcr.io",)]))
    def apply(self, url: str, registries: tuple[str, ...]) -> None:
        """`mirror configure CLIENT URL --apply`."""
        if self.kind.name == "docker" and "ghcr.io" in registries:
            return
        wanted = Wanted(MirrorUrl.parse(url), registries, _PUBLIC)
        journal = self.journal()
        plan = self.kind.plan(journal, wanted)
        assert not plan.conflicts
        left = {note.partition(":")[0].lstrip("/") for note in journal.left_unchanged(plan)}
        assert left <= self.edited
        self.steps += 1
        journal.apply(plan, 1_700_000_000.0 + self.steps)
        # what nobody has named, and nobody has edited, is as it was
        files = self.files()
        for path in files.keys() - self.entries().keys():
            assert files[path] == self.start.get(path), path
        registry = registries[0] if registries else "docker.io" if self.kind.name == "docker" else "quay.io"
        asked = self.kind.asks(NodeFiles(self.root), registry)
        assert asked.endpoints, f"{registry} is asked of nobody"
        assert wanted.mirror.is_at(asked.endpoints[0]), f"{registry} is asked of {asked.endpoints}"
        assert not asked.trouble
        again = self.journal()
        assert again.differences(self.kind.plan(again, wanted)) == []

    @rule(choice=st.integers(0, 9), how=st.sampled_from(["append", "template", "delete"]))
    def edit(self, choice: int, how: str) -> None:
        """Somebody, or configuration management, changes a file."""
        files = self.files()
        if not files:
            return
        path = sorted(files)[choice % len(files)]
        self.steps += 1
        mark = f"mark-{self.steps}-"
        file = self.root / path
        if how == "delete":
            file.unlink()
        elif how == "template":
            template = self.start.get(path) or dict([_BEFORE[self.kind.name]]).get(path, "")
            file.write_text(_marked(path, template, mark))
        else:
            file.write_text(_marked(path, files[path], mark))
        for each in [each for each, where in self.marks.items() if where == path]:
            if not file.exists() or each not in file.read_text():
                del self.marks[each]
        if file.exists():
            self.marks[mark] = path
        if path in self.entries():
            self.edited.add(path)
        else:
            self.start = {**{one: text for one, text in self.start.items() if one != path}, **self._text_of(path)}

    def _text_of(self, path: str) -> dict[str, str]:
        file = self.root / path
        return {path: file.read_text()} if file.exists() else {}

    @rule()
    def undo(self) -> None:
        """`mirror configure CLIENT --undo`."""
        before = self._everything()
        try:
            self.journal().undo()
        except NodeRefused as error:
            refusal = str(error)
        else:
            refusal = ""
        if refusal:
            assert any(f"/{path}: " in refusal for path in self.edited), refusal
            assert "nothing was undone" in refusal
            assert self._everything() == before
            return
        assert self.files() == self.start
        assert not (self.home / _JOURNAL).exists()
        self.edited.clear()

    @rule()
    def put_right_and_undo(self) -> None:
        """Each file as its backup has it, as the refusal says: then nothing is in the way."""
        for path, backup in self.entries().items():
            if backup is None:
                (self.root / path).unlink(missing_ok=True)
            else:
                (self.root / path).parent.mkdir(parents=True, exist_ok=True)
                (self.root / path).write_text((self.root / backup).read_text())
            self.marks = {mark: where for mark, where in self.marks.items() if where != path}
        self.journal().undo()
        assert self.files() == self.start
        assert not (self.home / _JOURNAL).exists()
        self.edited.clear()

    def check_invariants(self, *arguments: Any, **more: Any) -> None:
        """What somebody wrote is in its file, or in a backup of it."""
        super().check_invariants(*arguments, **more)
        everything = self._everything()
        for mark, path in self.marks.items():
            texts = [text for name, text in everything.items() if name == path or name.startswith(path + _BACKUP)]
            assert any(mark in text for text in texts), f"{mark} is gone from {path}"

    def _everything(self) -> dict[str, str]:
        return {str(path.relative_to(self.root)): path.read_text() for path in self.root.rglob("*") if path.is_file()}


def _marked(path: str, text: str, mark: str) -> str:
    if not path.endswith(".json"):
        return f"{text}# {mark}\n"
    return json.dumps({**json.loads(text or "{}"), mark: True}, indent=2) + "\n"


@pytest.mark.parametrize("client", sorted(CLIENTS))
def test_every_sequence(client: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of applying, editing, applying something else and undoing."""
    # thousands of files are written, and no power cut is meant
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)

    class Machine(Sequences):
        def __init__(self) -> None:
            super().__init__(client)

    run_state_machine_as_test(
        Machine,
        settings=settings(max_examples=25, stateful_step_count=12),
    )
