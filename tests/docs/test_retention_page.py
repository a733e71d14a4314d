"""The rules on the page about retention are good."""

from __future__ import annotations

import re
from pathlib import Path

from mirror.config import load
from mirror.config.checks import hints

_PAGE = Path(__file__).resolve().parents[2] / "docs/retention.md"
_RULE = '[[access.rule]]\neffect = "allow"\ncallers = ["*"]\nactions = ["pull", "push"]\nrepositories = ["corp/**"]\n'


def test_the_examples_are_good(tmp_path: Path) -> None:
    """Each loads as it stands, in a registry, and none is warned of."""
    examples = re.findall(r"```toml\n(.*?)```", _PAGE.read_text(), re.DOTALL)
    assert len(examples) == 5
    for number, example in enumerate(examples):
        path = tmp_path / f"{number}.toml"
        head = "" if example.startswith("[[hosted]]") else '[[hosted]]\nname = "corp"\n'
        path.write_text(f"{head}{example}\n{_RULE}")
        loaded = load(path)
        [hosted] = loaded.hosted
        assert len(hosted.retention) == 1
        assert hosted.retention[0].policy.delete
        assert hints(loaded) == []
