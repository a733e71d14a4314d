"""What importing costs beyond the modules themselves."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collecting() -> Iterator[None]:
    """In this block the interpreter does not look for cycles. For blocks that import: what they make stays for as long
    as the process lives, and without this, all of it is looked through again and again while it grows, which takes
    up to a fifth of the processor's time for the imports of a worker.
    """
    collected = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collected:
            gc.enable()
