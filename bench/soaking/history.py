"""Every answer of a run, in a file, and the invariant that it is checked against.

The invariant: each complete 200 or 206 body is what its digest names.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.soaking.exchange import Answer

#: Wrong answers that are shown.
_SHOWN: Final = 20


@dataclass(slots=True)
class Checked:
    """`answers` by kind and outcome; `corrupt` are the first of the wrong ones, of `wrong` altogether."""

    answers: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    bodies: int = 0
    cut: int = 0
    #: Of the cut ones, those that had wrong bytes before they were cut: the tail was withheld, as it must be.
    cut_and_wrong: int = 0
    received: int = 0
    #: Bytes of blobs that came complete, in one piece, at least once.
    unique: int = 0
    wrong: int = 0
    corrupt: list[dict[str, Any]] = field(default_factory=list)


class History:
    """Appends to a file; nothing is kept in memory."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._file = place.open("w", buffering=1 << 16)

    def add(self, answer: Answer) -> None:
        """One answer, when it has ended."""
        self._file.write(json.dumps(answer.to_json(), separators=(",", ":")) + "\n")

    def close(self) -> Path:
        """The finished file. Repeatable."""
        self._file.close()
        return self._place


def check(place: Path, sizes: Mapping[str, int]) -> Checked:
    """Read a history and judge each answer in it. `sizes` are the bytes of everything that was published, by digest."""
    found = Checked()
    whole: set[str] = set()
    with place.open() as file:
        for line in file:
            answer = json.loads(line)
            found.answers[f"{answer['method']} {answer['kind']}: {answer['outcome']}"] += 1
            found.statuses[answer["status"]] += 1
            found.received += answer["received"]
            if answer["method"] != "GET" or answer["status"] not in (200, 206):
                continue
            if answer["outcome"] != "complete":
                found.cut += answer["outcome"] == "broken"
                found.cut_and_wrong += answer["wrong_at"] is not None
                continue
            found.bodies += 1
            if not _holds(answer, sizes):
                found.wrong += 1
                found.corrupt += [answer] if len(found.corrupt) < _SHOWN else []
            elif answer["status"] == 200 and answer["digest"] in sizes:
                whole.add(answer["digest"])
    found.unique = sum(sizes[digest] for digest in whole)
    return found


def _holds(answer: Mapping[str, Any], sizes: Mapping[str, int]) -> bool:
    """The invariant, for one complete answer. Tag lists have no digest: they are judged by whoever asked."""
    digest, start, received = answer["digest"], answer["start"], answer["received"]
    if answer["wrong_at"] is not None or received != answer["promised"]:
        return False
    if digest is None:
        return True
    size = sizes.get(digest)
    if size is None:
        return False
    if answer["status"] == 200:
        return bool(received == size and f"sha256:{answer['sha256']}" == digest)
    first, _, last = answer["asked"].removeprefix("bytes=").partition("-")
    stop = min(size, int(last) + 1) if last else size
    return bool(start == int(first) and start + received == stop)
