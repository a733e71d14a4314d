"""A command that a mirror would have to know of makes no store: a wrong `--config` is said, and loses nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.command import mirror

_IMAGE = "docker.io/library/app:1.0"


@pytest.mark.parametrize(
    "words",
    [
        ["pin", _IMAGE],
        ["unpin", _IMAGE],
        ["pins"],
        ["freeze", _IMAGE],
        ["freeze", _IMAGE, "--at", f"sha256:{'0' * 64}"],
        ["unfreeze", _IMAGE],
        ["freezes"],
        ["history", _IMAGE],
        ["purge", _IMAGE],
        ["evict"],
        ["why", _IMAGE],
        ["show", _IMAGE],
        ["verify"],
        ["jobs"],
        ["ls"],
        ["status"],
        ["token", "list"],
    ],
    ids=" ".join,
)
def test_it_says_that_there_is_no_store(tmp_path: Path, words: list[str]) -> None:
    config, root = tmp_path / "mirror.toml", tmp_path / "mistyped"
    config.write_text(f'[store]\nroot = "{root}"\n')
    done = mirror(*words, "--config", config)
    assert (done.status, f"there is no store at {root}" in done.err) == (2, True), done
    assert not root.exists()
