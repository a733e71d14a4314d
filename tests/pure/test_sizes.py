"""Sizes and capacities as people write them."""

from __future__ import annotations

import pytest

from mirror.values.sizes import Capacity, format_size, parse_capacity, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1048576", 1048576),
        ("1 B", 1),
        ("1kB", 1000),
        ("1KB", 1000),
        ("500GB", 500 * 10**9),
        (" 500 gb ", 500 * 10**9),
        ("20GiB", 20 * 2**30),
        ("1.5TB", 1_500_000_000_000),
        ("0.1GB", 100_000_000),
        ("2 PiB", 2 * 2**50),
        ("10mib", 10 * 2**20),
    ],
)
def test_sizes_are_read(text: str, size: int) -> None:
    """Powers of 1000 and of 1024 are told apart by their units, whatever their case; decimals are exact."""
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not a size"),
        ("lots", "not a size"),
        ("-5GB", "not a size"),
        ("1e9", "not a size"),
        ("1,5GB", "not a size"),
        ("0x10", "not a size"),
        ("5G", "GB for powers of 1000 or GiB for powers of 1024"),
        ("5k", "kB for powers of 1000 or KiB"),
        ("5 parsec", "unknown unit 'parsec'"),
        ("9999999PB", "too large"),
        ("٣GB", "not a size"),
        ("80%", "not a size"),
    ],
)
def test_what_is_no_size_is_refused(text: str, said: str) -> None:
    """The text says what is wrong and what to write."""
    with pytest.raises(ValueError, match=said):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "capacity", "of_disk"),
    [
        ("500GB", Capacity(bytes=500 * 10**9), 500 * 10**9),
        ("80%", Capacity(percent=80), 800),
        ("100 %", Capacity(percent=100), 1000),
        ("0.5%", Capacity(percent=0.5), 5),
    ],
)
def test_capacities_are_read(text: str, capacity: Capacity, of_disk: int) -> None:
    """As bytes, or as a share of the disk (here 1000 bytes)."""
    assert parse_capacity(text) == capacity
    assert capacity.of(1000) == of_disk


@pytest.mark.parametrize("text", ["0", "0GB", "0%", "101%", "-1%", "%", "80%%", "8x%", "80 percent", ""])
def test_what_is_no_capacity_is_refused(text: str) -> None:
    """Nothing at all is no capacity either."""
    with pytest.raises(ValueError, match=r"capacity|share of the disk|not a size|unknown unit"):
        parse_capacity(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1536, "1.54 kB"),
        (999_499, "999 kB"),
        (999_500, "1 MB"),
        (20 * 2**30, "21.5 GB"),
        (10**18, "1e+03 PB"),
    ],
)
def test_sizes_for_people(size: int, text: str) -> None:
    """Three digits and a unit of 1000s."""
    assert format_size(size) == text


def test_a_capacity_for_people() -> None:
    """As it was written, about."""
    assert str(parse_capacity("80%")) == "80%"
    assert str(parse_capacity("500GB")) == "500 GB"
