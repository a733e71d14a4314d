"""The files that the pages about clients show, to be written by hand: by page, path and text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

#: How the pages call the mirror.
MIRROR: Final = "mirror.internal:5000"

_PAGES: Final = Path(__file__).resolve().parents[2] / "docs/clients"
_FILE: Final = re.compile(r"`(/etc/[^`]+)`[^`]*:\n\n```(?:toml|json|yaml)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def shown_files(page: str, mirror: str = MIRROR) -> dict[str, str]:
    """Text by path, as for a mirror at `host:port`."""
    return {path: text.replace(MIRROR, mirror) for path, text in _FILE.findall((_PAGES / f"{page}.md").read_text())}
