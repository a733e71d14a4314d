"""The command line: thin calls into what the rest can do. One file per group of commands.

A module that is imported here adds its commands to the application; `--help` lists them in this order.
"""

# isort: off
from mirror.cli import serving as serving
from mirror.cli import status as status
from mirror.cli import storage as storage
from mirror.cli import prefetch as prefetch
from mirror.cli import sync as sync
from mirror.cli import tasks as tasks
from mirror.cli import tags as tags
from mirror.cli import pins as pins
from mirror.cli import site as site
from mirror.cli import why as why
from mirror.cli import bundles as bundles
from mirror.cli import imports as imports
from mirror.cli import nodes as nodes
from mirror.cli import doctor as doctor

# isort: on
from mirror.cli.base import application, main

__all__ = ["application", "main"]
