"""Whose address a request has, and which requests are answered with a redirect."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.policy.clients.client_address import client_address
from mirror.policy.clients.networks import Networks, read_address
from mirror.policy.clients.redirecting import NoRedirect, RedirectRule, asked_bytes

INSIDE = Networks(["10.0.0.0/8", "fd00::/8", "192.0.2.1"])
PROXIES = Networks(["192.168.0.0/16", "2001:db8::/32", "unix"])
RULE = RedirectRule(INSIDE, 1000, 60.0)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("10.1.2.3", True),
        ("11.1.2.3", False),
        ("192.0.2.1", True),
        ("192.0.2.2", False),
        ("fd12::1", True),
        ("fd12::1%eth0", True),
        ("::ffff:10.1.2.3", True),
        ("2001:db8::1", False),
        ("unix", False),
        ("", False),
        ("10.1.2.3, 10.1.2.4", False),
        ("localhost", False),
    ],
)
def test_an_address_is_in_a_network(address: str, expected: bool) -> None:
    assert (address in INSIDE) is expected


def test_the_peers_of_unix_sockets_are_a_network_of_their_own() -> None:
    assert "unix" in PROXIES
    assert not Networks()
    assert Networks(["unix"])


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.1.2.3", "10.1.2.3"),
        (" 10.1.2.3 ", "10.1.2.3"),
        ("10.1.2.3:4711", "10.1.2.3"),
        ("[2001:db8::1]:4711", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("2001:db8::1", "2001:db8::1"),
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("unknown", None),
        ("_hidden", None),
        ("unix", None),
        ("", None),
    ],
)
def test_an_address_in_a_header_is_read(text: str, address: str | None) -> None:
    assert read_address(text) == address


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        pytest.param("10.1.1.1", [], "10.1.1.1", id="no proxy"),
        pytest.param("203.0.113.9", ["10.1.1.1"], "203.0.113.9", id="a client that lies"),
        pytest.param("192.168.0.1", ["10.1.1.1"], "10.1.1.1", id="a proxy"),
        pytest.param("192.168.0.1", ["10.1.1.1, 203.0.113.9"], "203.0.113.9", id="a client that lies to a proxy"),
        pytest.param("192.168.0.1", ["10.1.1.1", "203.0.113.9"], "203.0.113.9", id="in a header of its own"),
        pytest.param("192.168.0.1", ["203.0.113.9, 192.168.0.2"], "203.0.113.9", id="two proxies"),
        pytest.param("192.168.0.1", ["192.168.0.3, 192.168.0.2"], "192.168.0.3", id="a proxy as the client"),
        pytest.param("unix", ["10.1.1.1"], "10.1.1.1", id="a proxy at a unix socket"),
        pytest.param("192.168.0.1", [], None, id="a proxy that says nothing"),
        pytest.param("192.168.0.1", [""], None, id="a proxy that says an empty thing"),
        pytest.param("192.168.0.1", ["10.1.1.1, unknown"], None, id="a proxy that does not know"),
    ],
)
def test_only_what_trusted_proxies_have_added_counts(peer: str, forwarded: list[str], client: str | None) -> None:
    assert client_address(peer, forwarded, PROXIES) == client


@given(st.lists(st.text(max_size=40), max_size=5))
def test_a_client_cannot_choose_its_address(forwarded: list[str]) -> None:
    """Whatever a client writes, the proxy adds the address that it sees."""
    assert client_address("192.168.0.1", [*forwarded, "203.0.113.9"], PROXIES) == "203.0.113.9"
    assert client_address("203.0.113.9", forwarded, PROXIES) == "203.0.113.9"


@pytest.mark.parametrize(
    ("client", "ranges", "conditional", "again", "why"),
    [
        ("10.1.1.1", None, False, False, None),
        ("10.1.1.1", "bytes=5-", False, False, None),
        ("10.1.1.1", "bytes=0-9,20-29", False, False, NoRedirect.RANGES),
        ("10.1.1.1", "bytes=5-", True, False, NoRedirect.RANGES),
        ("10.1.1.1", None, False, True, NoRedirect.AGAIN),
        ("203.0.113.9", None, False, False, NoRedirect.NETWORK),
        (None, None, False, False, NoRedirect.NETWORK),
    ],
)
def test_a_request_is_redirected(
    client: str | None, ranges: str | None, conditional: bool, again: bool, why: NoRedirect | None
) -> None:
    assert RULE.of_request(client, ranges, conditional=conditional, again=again) is why


def test_small_blobs_are_not_redirected() -> None:
    assert RULE.of_blob(999) is NoRedirect.SMALL
    assert RULE.of_blob(1000) is None


def test_nobody_is_redirected_without_networks() -> None:
    assert RedirectRule(Networks(), 0, 60.0).of_request("10.1.1.1", None) is NoRedirect.NETWORK


@pytest.mark.parametrize(
    ("ranges", "asked"),
    [(None, 100), ("bytes=10-19", 10), ("bytes=90-", 10), ("bytes=-5", 5), ("pages=1-2", 100), ("bytes=100-", None)],
)
def test_the_bytes_that_are_asked_for_are_counted(ranges: str | None, asked: int | None) -> None:
    assert asked_bytes(ranges, 100) == asked
