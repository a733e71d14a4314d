"""How far an upstream may lead us: realms, redirects, addresses."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.policy.upstream.url_bounds import (
    UrlBounds,
    UrlRefused,
    needs_private,
    parse_address,
    parse_url,
    same_site,
    surviving_headers,
)

HUB = UrlBounds.of("https://registry-1.docker.io")
LOOPBACK = UrlBounds.of("http://127.0.0.1:5000")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("auth.docker.io", "registry-1.docker.io"),
        ("ghcr.io", "ghcr.io"),
        ("gitlab.com", "registry.gitlab.com"),
        ("docker-auth.elastic.co", "docker.elastic.co"),
        ("us.gcr.io", "gcr.io"),
        ("auth.registry.example.co.uk", "registry.example.co.uk"),
        ("localhost", "localhost"),
        ("10.0.0.1", "10.0.0.1"),
    ],
)
def test_hosts_of_one_site(one: str, other: str) -> None:
    """Equal, or below a parent that only one registrant has."""
    assert same_site(one, other)
    assert same_site(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("auth.docker.io.evil.example", "registry-1.docker.io"),
        ("evildocker.io", "registry-1.docker.io"),
        ("a.io", "b.io"),
        ("a.co.uk", "b.co.uk"),
        ("evil.com.au", "registry.com.au"),
        ("evil.azurecr.io", "mine.azurecr.io"),
        ("1.dkr.ecr.eu-west-1.amazonaws.com", "evil.s3.eu-west-1.amazonaws.com"),
        ("evil.github.io", "me.github.io"),
        ("10.0.0.1", "11.0.0.1"),
        ("1.0.0.1", "2.0.0.1"),
        ("localhost", "docker.io"),
    ],
)
def test_hosts_of_strangers(one: str, other: str) -> None:
    """Faults row 71: neighbours under a shared suffix are strangers."""
    assert not same_site(one, other)
    assert not same_site(other, one)


def test_a_realm_on_the_own_site_is_trusted() -> None:
    """Docker Hub's token service has another name than its registry."""
    assert HUB.check_realm("https://auth.docker.io/token").host == "auth.docker.io"


@pytest.mark.parametrize(
    "realm",
    [
        "https://evil.example/token",
        "http://auth.docker.io/token",
        "https://auth.docker.io@evil.example/token",
        "https://user:pass@auth.docker.io/token",
        "https://auth.docker.io\\@evil.example/",
        "https://evil.example#.docker.io",
        "https://evil.example?.docker.io",
        "https://169.254.169.254/latest",
        "http://127.0.0.1/",
        "ftp://auth.docker.io/",
        "file:///etc/passwd",
        "//auth.docker.io/token",
        "https://auth.docker.io:0/",
        "https://auth.docker.io:99999/",
        "https://auth.docker.io/a b",
        "https://auth.docker.io/\r\nX: y",
        "https://аuth.docker.io/",
        "",
    ],
)
def test_a_realm_elsewhere_is_refused(realm: str) -> None:
    """Faults row 71: credentials go to the own site over https, whatever tricks a challenge plays."""
    with pytest.raises(UrlRefused):
        HUB.check_realm(realm)


def test_a_realm_on_the_allow_list_is_trusted() -> None:
    """By host, by host and port, or by origin; https it must be all the same."""
    for entry in ("auth.example.org", "auth.example.org:443", "https://auth.example.org/", "AUTH.example.org"):
        assert UrlBounds.of("https://registry.test-site.net", [entry]).check_realm("https://auth.example.org/t")
    with pytest.raises(UrlRefused):
        UrlBounds.of("https://registry.test-site.net", ["auth.example.org"]).check_realm("http://auth.example.org/t")
    with pytest.raises(UrlRefused):
        UrlBounds.of("https://registry.test-site.net", ["auth.example.org:8443"]).check_realm(
            "https://auth.example.org/t"
        )


def test_a_refusal_does_not_show_secrets() -> None:
    """Faults row 76: neither queries nor user parts stand in the message."""
    for realm in ("https://evil.example/t?secret=canary", "https://canary:canary@evil.example/"):
        with pytest.raises(UrlRefused) as refusal:
            HUB.check_realm(realm)
        assert "canary" not in str(refusal.value)


def test_a_loopback_upstream_has_its_realm_next_door() -> None:
    """Another port, another loopback or private address; the metadata service never."""
    for realm in ("http://127.0.0.1:5001/token", "http://127.0.0.2/token", "http://10.1.2.3/t", "http://localhost/t"):
        assert LOOPBACK.check_realm(realm)
    with pytest.raises(UrlRefused):
        LOOPBACK.check_realm("http://169.254.169.254/token")
    with pytest.raises(UrlRefused):
        LOOPBACK.check_realm("http://evil.example/token")


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        (
            "https://cdn.example/a%2Fb?X-Sig=%7e%2B+~//..&x=a%20b",
            "https://cdn.example/a%2Fb?X-Sig=%7e%2B+~//..&x=a%20b",
        ),
        ("/v2/../x?y#frag", "https://registry-1.docker.io/v2/../x?y"),
        ("//cdn.example:8443/x", "https://cdn.example:8443/x"),
        ("?page=2", "https://registry-1.docker.io/v2/a/b?page=2"),
        ("c", "https://registry-1.docker.io/v2/a/c"),
        ("HTTPS://CDN.example", "https://cdn.example/"),
        ("https://[2001:db8::1]:444/x", "https://[2001:db8::1]:444/x"),
    ],
)
def test_a_redirect_is_followed_byte_for_byte(location: str, expected: str) -> None:
    """A signed URL that is quoted anew is another URL; relative ones are relative to where they came from."""
    current = parse_url("https://registry-1.docker.io/v2/a/b?c")
    assert str(HUB.next_hop(current, location, 0)) == expected


@pytest.mark.parametrize(
    "location", [None, "", "http://cdn.example/x", "gopher://x/", "javascript:1", "https://a b/", "ht\ntp://"]
)
def test_a_redirect_that_is_refused(location: str | None) -> None:
    """Faults row 72: no downgrade, no other schemes, nothing that is no URL."""
    with pytest.raises(UrlRefused):
        HUB.next_hop(parse_url("https://registry-1.docker.io/v2/a/b"), location, 0)


def test_redirects_end() -> None:
    """Faults row 14: the sixth in a row is refused."""
    current = parse_url("https://registry-1.docker.io/v2/")
    assert HUB.next_hop(current, "/x", 4)
    with pytest.raises(UrlRefused):
        HUB.next_hop(current, "/x", 5)


def test_headers_of_ours_stay_with_their_origin() -> None:
    """Faults row 15: another host, port or scheme gets nothing that says who we are."""
    headers = {"Authorization": "Bearer x", "Cookie": "a", "X-Own": "b", "Range": "bytes=1-", "accept": "*/*"}
    here = parse_url("https://a.example/x")
    assert surviving_headers(headers, here, parse_url("https://A.example:443/y")) == headers
    for there in ("https://b.a.example/x", "https://a.example:444/x", "http://a.example/x"):
        assert surviving_headers(headers, here, parse_url(there)) == {"Range": "bytes=1-", "accept": "*/*"}


NEVER = [
    "169.254.169.254",
    "169.254.0.1",
    "fe80::1",
    "fe80::1%eth0",
    "fd00:ec2::254",
    "100.100.100.200",
    "168.63.129.16",
    "0.0.0.0",
    "::",
    "224.0.0.1",
    "ff02::1",
    "::ffff:169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "2002:a9fe:a9fe::1",
    "not an address",
    "64:ff9b:1:a9fe:a9:fe00::",
    "64:ff9b:1::a9fe:a9fe",
    "::ffff:0:a9fe:a9fe",
    "2852039166",
    "0xa9fea9fe",
    "169.254.43518",
]
INTERNAL = [
    "127.0.0.1",
    "127.8.8.8",
    "::1",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "fd12::1",
    "::ffff:10.0.0.1",
    "fec0::1",
    "64:ff9b:1::a00:1",
    "::ffff:0:a00:1",
    "10.1",
]


@pytest.mark.parametrize("address", NEVER)
def test_forbidden_addresses(address: str) -> None:
    """Faults rows 71, 72: link-local, metadata, unspecified and multicast, in all their spellings, even internally."""
    for bounds in (HUB, LOOPBACK, UrlBounds.of("https://registry.example.com", internal=True)):
        assert not bounds.permits(bounds.base.host, address)
        assert not bounds.permits("cdn.example.net", address)


@pytest.mark.parametrize("address", INTERNAL)
def test_internal_addresses_are_for_internal_upstreams(address: str) -> None:
    """A public registry does not lead into our network; one that is configured to be in there may."""
    assert not HUB.permits("cdn.example.net", address)
    assert LOOPBACK.permits("cdn.example.net", address)
    assert UrlBounds.of("https://registry.example.com", internal=True).permits("cdn.example.net", address)
    assert not UrlBounds.of("http://127.0.0.1", internal=False).permits("cdn.example.net", address)


@pytest.mark.parametrize("url", ["https://registry.company.example", "http://registry.company.example", "http://reg"])
def test_a_name_is_no_consent_to_a_private_address(url: str) -> None:
    """Faults rows 71, 72: the upstream's own name is checked like any other, over http and https, unless it is
    configured as private: otherwise whoever answers for the name reads, or probes, our network through the mirror."""
    company = UrlBounds.of(url)
    assert not company.permits(company.base.host, "10.0.0.1")
    assert not company.permits("files.company.example", "10.0.0.2")
    private = UrlBounds.of(url, internal=True)
    assert private.permits(company.base.host, "10.0.0.1")
    assert private.permits("files.company.example", "10.0.0.2")


@pytest.mark.parametrize("host", ["127.0.0.1", "10.1.2.3", "[::1]", "[fd12::1]", "localhost", "127.1"])
def test_an_address_in_the_url_is_its_own_consent(host: str) -> None:
    """And so is `localhost`, which leads nowhere else."""
    bounds = UrlBounds.of(f"http://{host}:5000")
    assert bounds.internal
    assert not needs_private(f"http://{host}:5000")
    assert UrlBounds.of("http://10.1.2.3", internal=False).permits("10.1.2.3", "10.1.2.3")


@pytest.mark.parametrize("host", ["registry", "registry.corp.internal", "registry.kube.svc", "nas.local", "a.lan"])
def test_names_that_need_private(host: str) -> None:
    """`mirror check` says so before anything is asked."""
    assert needs_private(f"http://{host}:5000")
    assert not UrlBounds.of(f"http://{host}:5000").internal


@pytest.mark.parametrize(
    ("spelled", "address"),
    [
        ("127.1", "127.0.0.1"),
        ("0x7f000001", "127.0.0.1"),
        ("0X7F.0.0.1", "127.0.0.1"),
        ("2130706433", "127.0.0.1"),
        ("0177.0.0.01", "127.0.0.1"),
        ("10.258", "10.0.1.2"),
        ("127.0.0.1.", "127.0.0.1"),
        ("::ffff:7f00:1", "127.0.0.1"),
        ("::ffff:0:7f00:1", "127.0.0.1"),
        ("64:ff9b::7f00:1", "127.0.0.1"),
        ("64:ff9b:1::7f00:1", "127.0.0.1"),
        ("::7f00:1", "127.0.0.1"),
        ("2002:7f00:1::", "127.0.0.1"),
        ("::1", "::1"),
    ],
)
def test_spellings_of_an_address(spelled: str, address: str) -> None:
    """As the C library, gateways and proxies read them."""
    assert str(parse_address(spelled)) == address


@given(st.from_regex(r"((0x[0-9a-f]{1,3}|0?[0-9]{1,4})\.){0,3}(0x[0-9a-f]{1,9}|0?[0-9]{1,11})", fullmatch=True))
def test_addresses_are_read_as_the_c_library_does(text: str) -> None:
    """Whatever it takes for an address, and with the same result."""
    try:
        expected = socket.inet_ntoa(socket.inet_aton(text))
    except OSError:
        assert parse_address(text) is None
    else:
        assert str(parse_address(text)) == expected


@pytest.mark.parametrize("name", ["", "registry", "1.2.3.4.5", "256.1.1.1", "0xg", "1.example", "08.1.1.1", "0x.com"])
def test_names_are_no_addresses(name: str) -> None:
    """Whatever `inet_aton` refuses is a name."""
    assert parse_address(name) is None


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_public_addresses_are_for_all(address: str) -> None:
    """CDNs are anywhere."""
    assert HUB.permits("cdn.example.net", address)


@given(st.text(max_size=60))
def test_any_location_is_followed_or_refused(location: str) -> None:
    """What upstream sends raises nothing else, and leads to http or https only."""
    current = parse_url("https://registry-1.docker.io/v2/a")
    try:
        followed = HUB.next_hop(current, location, 0)
    except UrlRefused:
        return
    assert followed.scheme == "https"
    assert parse_url(str(followed)) == followed
