"""`mirror ls` in parts."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.command import mirror
from tests.support.stocked import Stocked, write_settings


def test_a_list_in_parts(tmp_path: Path) -> None:
    """Each part ends where `--limit` says and the next one begins behind its last image; together they are the whole
    list. An image that is not there is a place in the list all the same.
    """
    stocked = Stocked(tmp_path / "store")
    for number in range(5):
        root = stocked.image(f"library/app{number % 2}", [b"%d" % number])
        if number != 3:
            stocked.tag(f"library/app{number % 2}", f"v{number}", root)
    config = write_settings(tmp_path / "store")

    def listed(*words: str) -> list[str]:
        done = mirror("ls", "--json", *words, "-c", config)
        assert done.status == 0, done
        return [json.loads(line)["image"] for line in done.out.splitlines()]

    whole = listed()
    assert len(whole) == 5
    parts, after = [], ""
    while part := listed("--limit", "2", *(["--after", after] if after else [])):
        assert len(part) <= 2
        parts += part
        after = part[-1]
    assert parts == whole
    assert listed("--after", "app0:v3") == [name for name in whole if name > "docker.io/library/app0:v3"]
    assert listed("app1", "--limit", "1") == whole[3:4]
    assert mirror("ls", "--after", "A B", "-c", config).status == 2
    assert mirror("ls", "--limit", "0", "-c", config).status == 2
