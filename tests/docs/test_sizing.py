"""The table of sizes in docs/cluster.md is what its arithmetic gives."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Final

import pytest
import redis

from mirror.index.redis import RedisIndex
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.records import ContentRecord, References
from tests.support.process import PATIENCE
from tests.support.redis_server import RedisServer

_PAGE: Final = (Path(__file__).resolve().parents[2] / "docs/cluster.md").read_text()
#: What the page says about one replica and one blob.
_SHARE: Final = 0.7
_SEND: Final = 0.21
_RECEIVE: Final = 1.22
_GIVE: Final = 0.5
_MEAN_BLOB: Final = 10e6
_REDIS: Final = 700
_REQUESTS: Final = 12
_GIB: Final = 1e9 / 2**30


def _rows() -> list[list[str]]:
    """The cells of each row of the table, as they are written."""
    [heading] = [line for line in _PAGE.splitlines() if line.startswith("| nodes | image |")]
    after = _PAGE.partition(heading)[2].strip().splitlines()[1:]
    table = [line for line in after[: after.index("")] if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def _number(cell: str) -> float:
    return float(cell.split(" ")[0].replace(",", ""))


@pytest.mark.parametrize("row", _rows(), ids=lambda row: str(row[0]))
def test_a_row_is_what_the_arithmetic_gives(row: list[str]) -> None:
    """As it is written: the numbers of its inputs, by the formulas of the page."""
    nodes, image, time, network, disk = map(_number, row[:5])
    out = nodes * image / time
    replicas = max(3, math.ceil(out / (_SHARE * network / 8)) + 1)
    each = out / (replicas - 1)
    cores = each * _GIB * _SEND + image * _GIB * (_RECEIVE + _GIVE) / time
    requests = nodes * _REQUESTS
    assert row[5:] == [
        f"{out:.2f} GB/s",
        str(replicas),
        f"{each:.2f} GB/s",
        f"{math.ceil(cores * 10) / 10:.1f}",
        f"{image * (replicas - 1):g} GB",
        f"{replicas * disk * 1e12 / _MEAN_BLOB * _REDIS / 1e9:.2f} GB",
        f"{requests:,.0f}",
        f"{min(requests, replicas * time):,.0f}",
    ]


async def test_redis_needs_what_the_page_says() -> None:
    """For images of ten blobs, measured in a real one, to a third."""
    with RedisServer() as server:

        def used() -> int:
            with redis.Redis(unix_socket_path=str(server.socket)) as asked:
                return int(asked.info("memory")["used_memory"])

        before = used()
        index = RedisIndex(server.address, store_id="0f8e7c1a-0000-4000-8000-000000000001", budget=PATIENCE)
        try:
            for image in range(500):
                blobs = [Digest.of(f"{image} {blob}".encode()) for blob in range(10)]
                await index.put([ContentRecord(blob, 10_000_000 + image, 1732419199.125 + image) for blob in blobs])
                await index.record_references([References(blobs[0], (), tuple(blobs[1:]))])
                await index.link(Repo("docker.io", f"library/app-{image // 20}"), dict.fromkeys(blobs, 10_000_000))
        finally:
            await index.aclose()
        assert (used() - before) / 5000 == pytest.approx(_REDIS, rel=0.33)


def test_the_formulas_have_the_same_numbers() -> None:
    """Those of the page are those of this test, and there are several rows."""
    text = re.sub(r"\s+", " ", _PAGE)
    for said in (
        f"{_SHARE:.0%} of one replica's network".replace("%", " %"),
        f"{_SEND} s of CPU for each GiB that it sends",
        f"{_RECEIVE} s for each GiB that it receives",
        f"{_GIVE} s for each GiB that it sends to another replica",
        f"{_MEAN_BLOB / 1e6:g} MB (a usual mean size of a blob)",
        f"{_REDIS} bytes for each blob",
        f"{_REQUESTS} for each node",
    ):
        assert said in text, said
    assert len(_rows()) > 3
