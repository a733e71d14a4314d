"""NO_PROXY, and the order of endpoints."""

from __future__ import annotations

import pytest

from mirror.policy.upstream.endpoint_order import in_order
from mirror.policy.upstream.no_proxy import bypasses_proxy
from mirror.policy.upstream.retrying import CLOSED, Circuit


@pytest.mark.parametrize(
    ("no_proxy", "host", "port", "spared"),
    [
        ("", "a.io", 443, False),
        ("*", "a.io", 443, True),
        ("a.io", "a.io", 443, True),
        ("a.io", "x.a.io", 443, True),
        (".a.io", "x.a.io", 443, True),
        ("*.a.io", "x.a.io", 443, True),
        ("A.IO", "a.io", 443, True),
        ("a.io", "ba.io", 443, False),
        ("b.io, a.io", "a.io", 443, True),
        ("a.io:5000", "a.io", 5000, True),
        ("a.io:5000", "a.io", 443, False),
        ("10.0.0.0/8", "10.1.2.3", 443, True),
        ("10.0.0.0/8", "11.1.2.3", 443, False),
        ("127.0.0.1", "127.0.0.1", 80, True),
        ("127.0.0.1:80", "127.0.0.1", 81, False),
        ("::1", "::1", 80, True),
        ("[::1]:80", "::1", 80, True),
        ("[::1]:80", "::1", 81, False),
        ("10.0.0.0/8", "a.io", 443, False),
        (",, ,", "a.io", 443, False),
    ],
)
def test_no_proxy(no_proxy: str, host: str, port: int, spared: bool) -> None:
    """The forms in which people write it."""
    assert bypasses_proxy(no_proxy, host, port) is spared


def test_order_of_endpoints() -> None:
    """As configured; the one to avoid later; those that are down last, but for one probe when their pause is over."""
    down: Circuit = CLOSED
    for _ in range(3):
        down = down.failed(100.0)
    assert in_order([CLOSED, CLOSED, CLOSED], 100) == [0, 1, 2]
    assert in_order([CLOSED, CLOSED, CLOSED], 100, avoid=0) == [1, 2, 0]
    assert in_order([down, CLOSED, CLOSED], 100, avoid=1) == [2, 1, 0]
    assert in_order([down, down, CLOSED], 100) == [2, 0, 1]
    assert in_order([down, down], 100) == [0, 1]
    assert in_order([down, CLOSED], 102) == [0, 1]
    assert in_order([down, CLOSED], 102, probing={0}) == [1, 0]
