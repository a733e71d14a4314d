"""Text from outside, made harmless to show."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.oci.text import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("linux/arm64", "linux/arm64"),
        ("café 東京", "café 東京"),
        ("", ""),
        ("\x1b[31mred\x1b]0;title\x07", "\\x1b[31mred\\x1b]0;title\\x07"),
        ("one\ntwo\r\tthree", "one\\ntwo\\r\\tthree"),
        ("\ud800", "\\ud800"),
        ("gnp.\u202eexe", "gnp.\\u202eexe"),
        ("c1 \x9b31m", "c1 \\x9b31m"),
        ("[/x]", "[/x]"),
    ],
)
def test_what_is_shown(text: str, shown: str) -> None:
    """What is not printable is written as Python writes it; everything else stays."""
    assert printable(text) == shown


def test_characters_that_stay() -> None:
    """A text of several lines keeps its lines."""
    assert printable("one\n\ttwo\x1b", keep="\n\t") == "one\n\ttwo\\x1b"


@given(st.text(st.characters(exclude_categories=[])))
def test_any_text(text: str) -> None:
    """The result can be written, on one line, and is left as it is the second time."""
    shown = printable(text)
    assert shown.isprintable()
    assert shown.encode().decode() == shown
    assert printable(shown) == shown
