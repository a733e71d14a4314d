"""A store that belongs to another user is refused with words about whose it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mirror.errors import StoreError
from mirror.folders import whose
from mirror.store.local.blobs import LocalStore
from mirror.store.local.layout import Layout


def test_whose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is said of a folder that is ours; of another user's, both users and what to do."""
    owner = os.geteuid()
    assert whose(tmp_path) == ""
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    said = f"belongs to user {owner}, and this is user {owner + 1}"
    assert whose(tmp_path) == f": it {said}: run as that user, or chown -R {owner + 1} {tmp_path}"
    assert whose(tmp_path / "new") == f": {tmp_path} {said}: make the folder, and chown it to {owner + 1}"


def test_opening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `mirror serve` ends with."""
    owner = os.geteuid()

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(StoreError, match=rf"opening the store at .*: Permission denied: it belongs to user {owner},"):
        LocalStore(Layout(tmp_path))
