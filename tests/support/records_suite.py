"""What every implementation of `Records` does. A test class inherits `RecordsSuite` and supplies the fixtures.

`records` is empty; `another` is the same records in another process.
"""

from __future__ import annotations

import threading
from contextlib import suppress

import pytest

from mirror.errors import RecordChanged
from mirror.ports import ABSENT, Records

KEY = "docker.io/../x y\n\0é"


def count_up(records: Records, times: int) -> None:
    """Raise a number in one record by one, so many times, however many others do the same."""
    done = 0
    while done < times:
        with suppress(RecordChanged):
            found = records.versioned(KEY)
            number = found.record["n"] + 1 if found else 1
            records.put(KEY, {"n": number}, expect=found.version if found else ABSENT)
            done += 1


class RecordsSuite:
    """Fixtures to supply: `records`, `another`."""

    def test_the_life_of_a_record(self, records: Records, another: Records) -> None:
        """Absent, written, replaced, deleted; keys may contain anything."""
        assert records.get(KEY) is None
        assert records.versioned(KEY) is None
        assert list(records.all()) == []
        assert not records.drop(KEY)
        records.put(KEY, {"n": 1})
        records.put(KEY, {"n": 2})
        records.put("other", {"n": 3})
        assert another.get(KEY) == {"key": KEY, "n": 2}
        assert sorted((record["key"], record["n"]) for record in another.all()) == sorted([(KEY, 2), ("other", 3)])
        assert another.drop(KEY)
        assert not another.drop(KEY)
        assert records.get(KEY) is None

    def test_a_record_changes_only_from_the_expected_version(self, records: Records, another: Records) -> None:
        """A refused change or deletion changes nothing."""
        first = records.put(KEY, {"n": 1}, expect=ABSENT)
        with pytest.raises(RecordChanged):
            another.put(KEY, {"n": 9}, expect=ABSENT)
        found = another.versioned(KEY)
        assert found
        assert (found.record["n"], found.version) == (1, first)
        second = another.put(KEY, {"n": 2}, expect=first)
        with pytest.raises(RecordChanged):
            records.put(KEY, {"n": 9}, expect=first)
        with pytest.raises(RecordChanged):
            records.drop(KEY, expect=first)
        assert records.get(KEY) == {"key": KEY, "n": 2}
        assert records.drop(KEY, expect=second)
        with pytest.raises(RecordChanged):
            records.drop(KEY, expect=second)

    def test_no_change_is_lost(self, records: Records, another: Records) -> None:
        """Of writers at the same time that expect the same version one succeeds; the others read again."""
        threads = [threading.Thread(target=count_up, args=(one, 10)) for one in (records, another) * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert records.get(KEY) == {"key": KEY, "n": 40}
