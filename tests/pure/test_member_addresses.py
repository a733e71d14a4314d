"""The addresses of the replicas of a cluster: one spelling for each."""

from __future__ import annotations

import pytest

from mirror.policy.cluster.member_addresses import parse_member


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://10.0.0.1:5001", "http://10.0.0.1:5001"),
        ("http://10.0.0.1:5001/", "http://10.0.0.1:5001"),
        ("https://Mirror-0.Example:443", "https://mirror-0.example:443"),
        ("http://[FD00:0:0::1]:5001", "http://[fd00::1]:5001"),
        ("dns+http://mirror-internal.mirror.svc:5001", "dns+http://mirror-internal.mirror.svc:5001"),
    ],
)
def test_each_address_has_one_spelling(text: str, expected: str) -> None:
    assert str(parse_member(text)) == expected
    assert str(parse_member(expected)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "10.0.0.1:5001",
        "http://10.0.0.1",
        "http://10.0.0.1:0",
        "http://10.0.0.1:65536",
        "http://10.0.0.1:5001/peer",
        "http://user:pass@10.0.0.1:5001",
        "http://[10.0.0.1]x:5001",
        "http://[fd00:::1]:5001",
        "ftp://10.0.0.1:5001",
        "http://a b:5001",
        "http://10.0.0.1:5001\n",
    ],
)
def test_others_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="address"):
        parse_member(text)


def test_the_addresses_of_a_name_are_members_with_its_scheme_and_port() -> None:
    name = parse_member("dns+https://mirror.svc:5001")
    found = ["10.0.0.2", "10.0.0.1", "fd00:0::3", "10.0.0.2"]
    assert name.at(found, parse_member("https://10.0.0.1:5001")) == ["https://10.0.0.1:5001", "https://10.0.0.2:5001"]
    # a replica that has an address of each version is one member
    assert name.at(found, parse_member("https://[fd00::1]:5001")) == ["https://[fd00::3]:5001"]
    assert name.lookup
    assert name.is_tls
    assert not name.has_ip
