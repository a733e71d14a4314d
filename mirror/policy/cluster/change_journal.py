"""The journal of records that several replicas change: those of one hosted repository, or of some kinds. Pure.

    {"format": 1, "nonce": "…", "seq": 17, "floor": 3, "writing": {"<replica>": 15}, "changed": [[16, "<key>"], …]}

    no journal ── begun ──> a replica writes ── begun ──> it writes on ── ended, with the keys that it wrote ──> still
                                └── nothing is heard of it ── forsaken ──> whatever is remembered counts no more

While another replica is writing, nothing that is remembered of the records counts. Every step raises `seq`. `writing`
has the `seq` of the last `begun` of each replica. `changed` is complete for everything above `floor`: who has seen an
earlier state must doubt all records. `nonce` is another one if the journal was lost and begun anew.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

#: The format of the content. One of another format is not touched.
FORMAT: Final = 1
#: Keys that a journal has at most.
_MOST: Final = 400


class UnknownFormat(ValueError):
    """A journal that another version of the mirror has written."""


@dataclass(frozen=True, slots=True)
class ChangeJournal:
    """One state of a journal. Keys are those of records, in the order of their last change."""

    nonce: str
    seq: int = 0
    floor: int = 0
    writing: Mapping[str, int] = field(default_factory=dict)
    changed: tuple[tuple[int, str], ...] = ()

    def begun(self, replica: str) -> ChangeJournal:
        """The state once a replica writes, or writes still."""
        seq = self.seq + 1
        return replace(self, seq=seq, writing={**self.writing, replica: seq})

    def ended(self, replica: str, keys: Collection[str]) -> ChangeJournal:
        """The state once a replica has written these records, and writes no more."""
        seq = self.seq + 1
        known = [entry for entry in self.changed if entry[1] not in keys]
        entries = [*known, *((seq, key) for key in sorted(keys))]
        dropped, left = entries[:-_MOST], entries[-_MOST:]
        floor = max([self.floor, *(number for number, _ in dropped)])
        return replace(self, seq=seq, floor=floor, writing=self._without(replica), changed=tuple(left))

    def forsaken(self, *replicas: str) -> ChangeJournal:
        """The state once it is not known what these replicas have written."""
        seq = self.seq + 1
        return replace(self, seq=seq, floor=seq, writing=self._without(*replicas), changed=())

    def _without(self, *replicas: str) -> Mapping[str, int]:
        return {each: seq for each, seq in self.writing.items() if each not in replicas}

    def since(self, nonce: str, seq: int) -> Sequence[str] | None:
        """The keys that have changed since the state `seq` of the journal `nonce` (both empty: there was none). None if
        any record may have.
        """
        if (nonce != self.nonce and (nonce or seq)) or seq < self.floor:
            return None
        return [key for number, key in self.changed if number > seq]

    def to_json(self) -> bytes:
        """The content of the object."""
        said = {
            "format": FORMAT,
            "nonce": self.nonce,
            "seq": self.seq,
            "floor": self.floor,
            "writing": dict(self.writing),
            "changed": self.changed,
        }
        return json.dumps(said, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, content: bytes) -> ChangeJournal | None:
        """Read it back; None if it is damaged. Raises `UnknownFormat`."""
        try:
            said = json.loads(content)
            form = said["format"]
            if isinstance(form, int) and form != FORMAT:
                raise UnknownFormat(f"a journal of the format {form}; this version of the mirror knows {FORMAT}")
            writing = {str(replica): int(seq) for replica, seq in said["writing"].items()}
            changed = tuple((int(seq), str(key)) for seq, key in said["changed"])
            return cls(str(said["nonce"]), int(said["seq"]), int(said["floor"]), writing, changed)
        except UnknownFormat:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
