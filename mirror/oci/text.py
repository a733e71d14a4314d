"""Makes text from outside safe to show in terminals, web pages and logs.

Platforms, media types and error messages come from registries and layouts, and are shown in tables, logs and web pages.
There an escape sequence could move the cursor, a line break could forge a log line, a right-to-left mark could reverse
a name, and half a surrogate pair cannot be written at all.
"""

from __future__ import annotations


def printable(text: str, *, keep: str = "") -> str:
    """The text with unprintable characters escaped as in Python, such as `\\x1b` or `\\ud800`.

    The characters in `keep` are not escaped, for example line breaks in a text of several lines.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in keep else _escaped(char) for char in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
