"""Maps that remember only the latest keys."""

from __future__ import annotations

from collections import OrderedDict

from mirror.aio.latest import put_latest


def test_the_oldest_key_leaves() -> None:
    """A key that is put again counts as the latest, with its new value."""
    entries: OrderedDict[str, int] = OrderedDict()
    for key, value in (("a", 1), ("b", 2), ("a", 3), ("c", 4)):
        put_latest(entries, key, value, 2)
    assert list(entries.items()) == [("a", 3), ("c", 4)]


def test_a_lower_bound_takes_effect() -> None:
    """Everything beyond it leaves at the next entry."""
    entries = OrderedDict.fromkeys(range(10), "")
    put_latest(entries, 10, "", 3)
    assert list(entries) == [8, 9, 10]
