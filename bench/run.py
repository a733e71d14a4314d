"""`python bench/run.py`: measure the mirror beside nginx and distribution, and print the table."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # started as a file, python puts this folder first on the path; its parent is where the package `bench` is
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from bench.cli import main

    sys.exit(main())
