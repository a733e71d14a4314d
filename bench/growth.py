"""`python bench/growth.py`: what grows with a store, and by how much."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # started as a file, python puts this folder first on the path; its parent is where the package `bench` is
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from bench.growing import main

    sys.exit(main())
