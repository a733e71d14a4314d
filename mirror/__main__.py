"""`python -m mirror`."""

from mirror.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
