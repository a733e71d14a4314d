"""Values in the XML of AWS, which is flat enough to be read without a parser."""

from __future__ import annotations

import re
from html import unescape


def text_of(xml: str, tag: str) -> str:
    """The text of the first element of that name; empty if there is none."""
    found = re.search(rf"<{tag}>(.*?)</{tag}>", xml, re.DOTALL)
    return unescape(found[1]) if found else ""
