"""Rules for pins, and until when a pin holds."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.oci.reference import Repo
from mirror.policy.pins import PinRule, parse_until, rule_for

NOW = 1_700_000_000.0  # 2023-11-14T22:13:20Z


@pytest.mark.parametrize(
    ("match", "image", "fits"),
    [
        ("docker.io/library/app:1.0", "docker.io/library/app:1.0", True),
        ("docker.io/library/app:1.0", "docker.io/library/app:1.00", False),
        ("docker.io/library/app:1.0", "docker.io/library/app:1x0", False),
        ("docker.io/library/*:3.1*", "docker.io/library/python:3.12-slim", True),
        ("docker.io/library/*:3.1*", "docker.io/library/a/b:3.12", False),
        ("docker.io/**:*", "docker.io/library/a/b:v1", True),
        ("registry.k8s.io/**:v1.29.?", "registry.k8s.io/kube-proxy:v1.29.4", True),
        ("registry.k8s.io/**:v1.29.?", "registry.k8s.io/kube-proxy:v1.29.14", False),
        ("localhost:5000/app:*", "localhost:5000/app:x", True),
        ("localhost:5000/app:*", "localhost:5001/app:x", False),
    ],
)
def test_which_images_a_rule_fits(match: str, image: str, fits: bool) -> None:
    """The patterns of routes over the name, and the same for the tag behind the last colon."""
    name, _, tag = image.rpartition(":")
    registry, _, rest = name.partition("/")
    assert PinRule(match).fits(Repo(registry, rest), tag) is fits


@pytest.mark.parametrize("match", ["", "app", "app:1", "docker.io/library/app", "localhost:5000/app", "a/b:", "a/:x"])
def test_patterns_that_name_no_tag_or_no_repository(match: str) -> None:
    """Each says what to write instead: without a tag nobody knows whether `latest` or every one is meant."""
    with pytest.raises(ValueError, match="for every tag"):
        PinRule(match)


def test_the_first_rule_counts() -> None:
    """Its reason is what people are told."""
    rules = [PinRule("docker.io/library/app:1*", "first"), PinRule("docker.io/**:*", "second")]
    found = [rule_for(rules, Repo("docker.io", "library/app"), tag) for tag in ("1.0", "2.0")]
    assert [rule.reason for rule in found if rule] == ["first", "second"]
    assert rule_for(rules, Repo("ghcr.io", "library/app"), "1.0") is None


@pytest.mark.parametrize(
    ("text", "until"),
    [
        ("30d", NOW + 30 * 86400),
        ("1h30m", NOW + 5400),
        ("2024-03-01", 1_709_251_200.0),
        ("2024-03-01T12:00", 1_709_294_400.0),
        ("2024-03-01T12:00+01:00", 1_709_290_800.0),
        (" 2024-03-01T12:00:00Z ", 1_709_294_400.0),
    ],
)
def test_ends_are_read(text: str, until: float) -> None:
    """Dates begin in UTC, times may say their zone, durations count from now."""
    assert parse_until(text, NOW) == until


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tomorrow", "not a date"),
        ("", "not a date"),
        ("2024-13-01", "not a date"),
        ("2023-01-01", "in the past"),
        ("0s", "in the past"),
    ],
)
def test_ends_that_make_no_sense(text: str, said: str) -> None:
    """Neither what cannot be read, nor what is over already."""
    with pytest.raises(ValueError, match=said):
        parse_until(text, NOW)


@given(st.text(max_size=30))
def test_any_text_is_an_end_or_a_clear_no(text: str) -> None:
    """Nothing but a time to come, or `ValueError`."""
    with suppress(ValueError):
        assert parse_until(text, NOW) > NOW
