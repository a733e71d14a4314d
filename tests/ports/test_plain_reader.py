"""Objects over plain HTTP, from a store or a proxy that answers byte by byte."""

from __future__ import annotations

import socket
from datetime import timedelta
from typing import Any

from mirror.store.cloud.clouds import CloudStores, TimeLimits
from mirror.store.cloud.key_files import S3Keys
from mirror.store.cloud.plain_body import PlainReader
from mirror.store.cloud.raw_s3 import RawS3


def test_a_head_that_drips_ends_at_its_deadline() -> None:
    """The clock says that a second has passed at each look; each time, one more byte has come."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        drips: list[int] = []
        accepted: list[socket.socket] = []

        def clock() -> float:
            if len(drips) > 100:
                raise AssertionError("the answer is waited for without an end")
            if drips and not accepted:
                accepted.append(server.accept()[0])
            if accepted:
                accepted[0].sendall(b"HTTP/1.1 200 OK\r\nx-drip: " if len(drips) == 1 else b"a")
            drips.append(1)
            return float(len(drips))

        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}/bucket"
        raw = RawS3(endpoint, "", "us-east-1", lambda: S3Keys("key", "secret"))
        reader = PlainReader(raw, TimeLimits(connect=60.0, read=60.0, call=30.0), now=clock)
        assert reader.get("object", 0) is None
        assert len(drips) == 11
        for each in accepted:
            each.close()


def test_pages_of_listings_are_limited_in_all() -> None:
    """And bodies only by how long they stall."""
    made: list[dict[str, Any]] = []

    def make(client: Any, retry: Any, unsigned: bool) -> Any:
        made.append(client)
        return object()

    stores = CloudStores(make, TimeLimits(connect=3.0, read=10.0, call=15.0), 2, {})
    assert stores.pages is not stores.long
    assert [each["timeout"] for each in made] == [timedelta(seconds=60), timedelta(days=7)]
    assert [each["read_timeout"] for each in made] == [timedelta(seconds=10)] * 2
