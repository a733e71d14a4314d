"""Freezes whose changes the journals of their repositories show, too: a pull looks at no other journal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from mirror.oci.reference import Repo
from mirror.policy.cluster.journal_names import name_key, of_repo
from mirror.policy.records import Freeze
from mirror.policy.unreadable_records import UnreadableRecord
from mirror.ports import ChangeCounter, Freezes, RecordJournals


class JournaledFreezes:
    """`Freezes` of a replica of a cluster."""

    def __init__(
        self, freezes: Freezes, journals: RecordJournals, hosts: Callable[[str], bool], counter: ChangeCounter
    ) -> None:
        """`hosts` says of a registry whether it is hosted here: the repositories of others have no journals."""
        self._freezes = freezes
        self._journals = journals
        self._hosts = hosts
        self._counter = counter

    def __repr__(self) -> str:
        return f"<JournaledFreezes {self._freezes!r}>"

    def all(self) -> Iterator[Freeze]:
        yield from self._freezes.all()

    def look(self) -> tuple[Sequence[Freeze], Sequence[UnreadableRecord]]:
        return self._freezes.look()

    def get(self, repo: Repo, tag: str) -> Freeze | None:
        return self._freezes.get(repo, tag)

    def put(self, freeze: Freeze) -> None:
        with self._changing(freeze.repo):
            self._freezes.put(freeze)

    def drop(self, repo: Repo, tag: str) -> bool:
        with self._changing(repo):
            return self._freezes.drop(repo, tag)

    @contextmanager
    def _changing(self, repo: Repo) -> Iterator[None]:
        key = name_key(of_repo(repo))
        if key is None or not self._hosts(repo.registry):
            yield
            return
        with self._journals.writing(key):
            yield
        self._counter.note_change(repo)
