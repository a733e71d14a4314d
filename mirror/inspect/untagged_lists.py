"""Which images of a repository have no tag, remembered for the pages that follow.

    a page comes to the images without a tag ── found anew ── quick ──> not kept
                                                    └── slow ──> kept for a multiple of the time it took
    a page begins among them ── kept ──> the same list

To find them takes a look at every tag and manifest of the repository, so pages of a long list would otherwise cost the
whole repository each. Only pages that continue use what is kept: so a list has everything that was there when its first
page was asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from mirror.aio.caches import SharedLru
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo

#: Seconds: a list that was found in less time is not kept.
_QUICK: Final = 0.25
#: A list is kept for this many times as long as it took to find, up to so many seconds.
_TIMES: Final = 20.0
_LONGEST: Final = 600.0
#: Repositories whose lists are kept; a list takes about 150 bytes for each image.
_MOST: Final = 4


class UntaggedLists:
    """The lists of a few repositories. May be used from any thread. `now` counts seconds."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._lists: SharedLru[Repo, tuple[Sequence[Digest], float]] = SharedLru(_MOST)

    def __repr__(self) -> str:
        return f"<UntaggedLists {self._lists!r}>"

    def find(self, repo: Repo, look: Callable[[], Sequence[Digest]], *, continues: bool) -> Sequence[Digest]:
        """Blocking: returns what `look` returns, or, for a page that continues, what it returned lately. Raises the
        errors of `look`.
        """
        began = self._now()
        kept = self._lists.get(repo) if continues else None
        if kept is not None and began < kept[1]:
            return kept[0]
        found = look()
        took = self._now() - began
        if took >= _QUICK:
            self._lists.put(repo, (found, self._now() + min(_LONGEST, took * _TIMES)))
        return found
