"""Text from outside, made harmless to show: a terminal, a page and a log are told what it says, and do not obey it.

Platforms, media types and error messages come from registries and layouts, and end in tables, logs and web pages.
There an escape sequence would move the cursor, a line break would begin a line of its own, a mark for text from right
to left would turn a name round, and half a surrogate pair cannot be written at all.
"""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: str, *, keep: str = "") -> str:
    """The text with every character that is not printable written as Python writes it, such as `\\x1b` or `\\ud800`.

    `keep` are characters that stay all the same, such as line breaks in a text of several lines.
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in keep else _escaped(one) for one in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
