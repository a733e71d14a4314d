"""Names of repositories whose order as text is not that of folders, nor that of keys."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable
from itertools import islice

from mirror.oci.reference import Repo

_PARTS = ("a", "a-b", "a--b", "a.b", "a_b", "a0", "0", "0a", "ab", "b", "a-0", "a.b-a")
_REGISTRIES = ("corp", "corp-x", "corp.example", "corp:5000", "co")


def names(seed: int, count: int, registries: Iterable[str] = _REGISTRIES) -> list[Repo]:
    """So many repositories at random, in no order: many names begin with other ones, and go on in every way."""
    draw, registries = random.Random(seed), tuple(registries)
    found: dict[Repo, None] = {}
    while len(found) < count:
        parts = draw.choices(_PARTS, k=draw.choice((1, 1, 2, 2, 3, 4)))
        found[Repo(draw.choice(registries), "/".join(parts))] = None
    return list(found)


def places(repos: Iterable[Repo]) -> list[str]:
    """Texts after which a list may begin: the names, what they begin with, and much that is no name."""
    texts = sorted(map(str, repos))
    cut = [text[:end] for text in texts for end in range(len(text))]
    longer = [f"{text}{more}" for text in texts for more in ("-", "/", "/0", "/_", "0", "~", "\u00e9", "\ud800", "\0")]
    return list(dict.fromkeys(["", "z", "\U0010ffff", *texts, *cut, *longer]))


def must_be_ordered(
    read: Callable[[str], Iterable[Repo]], there: Collection[Repo], most: int | None = None, seed: int = 0
) -> None:
    """What `read` gives after any place, or after `most` of them, is what is there after it, in order."""
    texts, after = sorted(map(str, there)), places(there)
    for number, place in enumerate(after if most is None else ["", *random.Random(seed).sample(after, most)]):
        wanted = [text for text in texts if text > place]
        # whoever wants few sees the same ones
        count = len(wanted) if number % 3 == 0 else number % 5
        found = [str(repo) for repo in islice(read(place), count or None)]
        assert found == (wanted[:count] if count else wanted), place
