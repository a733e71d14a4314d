"""A machine's files in a dictionary: what plans are made from, without a disk."""

from __future__ import annotations

from collections.abc import Mapping


class GivenFiles:
    """`Files` of texts by path."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self.texts = dict(texts)

    def text(self, path: str) -> str | None:
        """None if there is none."""
        return self.texts.get(path)

    def names(self, folder: str) -> list[str]:
        """The entries of a folder."""
        inside = (path[len(folder) + 1 :] for path in self.texts if path.startswith(folder + "/"))
        return sorted({path.partition("/")[0] for path in inside})
