"""What another replica sends as a notice is one, or is refused as anything wrong is."""

from __future__ import annotations

import pytest

from mirror.errors import MirrorError
from mirror.oci.reference import Repo
from mirror.peers.notice_text import LARGEST, read_notice, write_notice
from mirror.ports.peers import Notice


def test_a_notice_is_read_as_it_was_written() -> None:
    notice = Notice(repositories=(Repo("corp", "team/app"),), kinds=("pins",))
    assert read_notice(write_notice(notice)) == notice


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"kinds": 3}',
        b'{"kinds": ["../x"]}',
        b'{"repositories": [["corp", "../x"]]}',
        b'{"purges": [{}]}',
        b"[" * LARGEST,
    ],
)
def test_anything_else_is_refused(content: bytes) -> None:
    with pytest.raises(MirrorError):
        read_notice(content)
