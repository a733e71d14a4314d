"""Faults: the invariant is looked at in every test, and loops say how often they tried.

Loops are short in ordinary runs. `MIRROR_FAULTS_KILLS`, `MIRROR_FAULTS_CUTS`, `MIRROR_FAULTS_REQUESTS`,
`MIRROR_FAULTS_RELOADS`, `MIRROR_FAULTS_STOPS`, `MIRROR_FAULTS_NAMES`, `MIRROR_FAULTS_STORMS` and
`MIRROR_FAULTS_BUCKET_ROUNDS` make them longer: the figures of long runs stand in docs/operations.md.
`MIRROR_FAULTS_SEED` is where dice begin.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import pytest

from tests.support.fake_registry import FakeRegistry
from tests.support.live_mirror import noise

Tally = Callable[..., None]


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Tally:
    """Say at the end of the run what was counted: `tests/conftest.py` prints it."""

    def tell(**counted: Any) -> None:
        text = ", ".join(f"{name} {value}" for name, value in counted.items())
        # goes with the test's report to the process that prints
        request.node.user_properties.append(("counted", text))

    return tell


@pytest.fixture
def times(request: pytest.FixtureRequest) -> Callable[[str, int], int]:
    """How often: a number of the environment, else the ordinary one."""

    def read(name: str, ordinary: int) -> int:
        return int(os.environ.get(f"MIRROR_FAULTS_{name}", ordinary))

    return read


#: Images that clients pull again and again while something breaks.
APPS: Final = [(f"library/app-{number}", "v1") for number in range(8)]


def add_apps(registry: FakeRegistry, sizes: Sequence[int]) -> None:
    """Each with layers of so many bytes, and one of 200 KB that all share."""
    for number, (name, tag) in enumerate(APPS):
        layers = [noise(size, seed=number * 10 + n) for n, size in enumerate(sizes)]
        registry.add_image(name, tag, [*layers, noise(200_000, seed=999)], config=b'{"n":%d}' % number)


def pytest_report_header() -> list[str]:
    """How long the loops are in this run."""
    asked: Mapping[str, str] = {
        name: os.environ[name] for name in sorted(os.environ) if name.startswith("MIRROR_FAULTS_")
    }
    return [f"faults: {', '.join(f'{name}={value}' for name, value in asked.items()) or 'short loops'}"]
