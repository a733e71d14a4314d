"""The settings of lazy routes: what they become, and which are mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from mirror.app.routes import route_of
from mirror.config import load
from mirror.errors import ConfigError
from mirror.oci.reference import Repo
from mirror.policy.rules import LazyRule


def _file(folder: Path, *lines: str) -> Path:
    file = folder / "mirror.toml"
    text = ['default_registry = ""', "[store]", f'root = "{folder}/store"']
    text += ["[[upstream]]", 'name = "ghcr.io"', "[[route]]", 'match = "ghcr.io/a/*"']
    file.write_text("\n".join([*text, *lines, ""]))
    return file


@pytest.mark.parametrize(
    ("lines", "rule"),
    [
        ([], None),
        (['ranges = "verified"', "lazy_share = 0.1"], None),
        (['ranges = "lazy"'], LazyRule(0.5, 10.0)),
        (['ranges = "lazy"', "lazy_share = 1", 'lazy_pause = "2m"'], LazyRule(1.0, 120.0)),
    ],
)
def test_a_route_has_a_rule_for_parts_if_it_is_lazy(tmp_path: Path, lines: list[str], rule: LazyRule | None) -> None:
    config = load(_file(tmp_path, *lines))
    assert route_of(config, Repo("ghcr.io", "a/app"))[1].lazy == rule
    assert route_of(config, Repo("ghcr.io", "b/app"))[1].lazy is None


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ('ranges = "lazzy"', "route[1].ranges"),
        ("lazy_share = 1.5", "route[1].lazy_share"),
        ("lazy_share = -0.1", "route[1].lazy_share"),
        ('lazy_pause = "soon"', "route[1].lazy_pause"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, line: str, named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(_file(tmp_path, line))
    [mistake] = caught.value.mistakes
    assert mistake.startswith(named), mistake
