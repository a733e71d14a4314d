"""docs/replicas.md: its example is good, and its numbers are those of the code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from mirror.config import Config, hints, load
from mirror.index.redis_address import parse_redis_url
from mirror.leases.bucket_clock import TOLERANCE
from mirror.leases.bucket_leases import LeaseTimes
from mirror.policy.cluster.peer_signatures import WINDOW

_PAGE: Final = (Path(__file__).resolve().parents[2] / "docs/replicas.md").read_text()
_EXAMPLE: Final = re.findall(r"```toml\n(.*?)```", _PAGE, re.DOTALL)[0]


def _loaded(folder: Path, text: str) -> Config:
    """The example, with its files in a folder, and a hosted registry, without which a bucket would have no use."""
    (folder / "cluster.secret").write_text("a secret of the cluster, of more than 32 bytes\n")
    (folder / "token.key").write_text("MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=\n")
    file = folder / "mirror.toml"
    file.write_text(text.replace("/etc/mirror/", f"{folder}/") + '[bucket]\nregion = "eu-central-1"\n')
    return load(file)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_example_is_good_on_each_replica(number: int, tmp_path: Path) -> None:
    """With the address of that replica, and nothing else changed."""
    address = f"http://10.0.0.{number}:5001"
    config = _loaded(tmp_path, re.sub(r"^address = \S+", f'address = "{address}"', _EXAMPLE, flags=re.MULTILINE))
    assert config.cluster.address in config.cluster.members
    assert len(config.cluster.members) == 3
    assert [one for one in hints(config) if "cluster" in one] == []


def test_its_numbers_are_those_of_the_code() -> None:
    """Defaults of settings, and times of leases and signatures."""
    config = load(None)
    times = LeaseTimes()
    text = re.sub(r"\s+", " ", _PAGE)
    for said in (
        f"`cluster.drain` ({config.cluster.drain:g} s)",
        f"`server.drain_timeout` ({config.server.drain_timeout:g} s)",
        f'`tag_freshness = "{config.hosting.tag_freshness:g}s"`, the default',
        f"takes over after about {times.taken_after:g} seconds",
        f"beyond {TOLERANCE:g} s, that replica does no work for all",
        f"eyond {WINDOW:g} s, other replicas refuse its",
        f"without it after {config.index.timeout * 1000:g} ms",
    ):
        assert said in text, said


def test_the_address_of_a_redis_is_one() -> None:
    """That of docs/cluster.md for Sentinels."""
    page = (Path(__file__).resolve().parents[2] / "docs/cluster.md").read_text()
    [url] = re.findall(r"url='(redis\+sentinel://[^']+)'", page)
    assert parse_redis_url(url)
