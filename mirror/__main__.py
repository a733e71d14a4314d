"""`python -m mirror`."""

import gc

from mirror.imports import without_collecting

with without_collecting():
    from mirror import cli


def main() -> None:
    """The entry of the `mirror` command, whose end is the process's."""
    try:
        cli.main()
    finally:
        # at its end the interpreter looks for cycles in all that was imported, again and again, which took a third of a
        # short command's time; what holds anything outside of this process is closed by now
        gc.freeze()


if __name__ == "__main__":
    main()
