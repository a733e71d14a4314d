"""`python bench/soak.py`: a mirror under load and under faults for as long as wanted, and what came of it."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # started as a file, python puts this folder first on the path; its parent is where the package `bench` is
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from bench.soaking.whole_run import main

    sys.exit(main())
