"""What all commands share: the application, the options that are the same everywhere, and how errors end.

Exit status: 0 done, 1 failed, 2 unusable arguments or configuration.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from mirror import __version__
from mirror import config as settings
from mirror.errors import ConfigError, MirrorError, RequestError
from mirror.policy.images import Image, parse_image

__all__ = ["ConfigFile", "application", "main", "parse_images", "table_console"]

application = typer.Typer(
    name="mirror",
    help="A pull-through caching mirror for OCI and Docker registries.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # help and messages are plain text: «[/variant]» and «[IMAGE]» mean themselves
    rich_markup_mode=None,
    context_settings={"max_content_width": 120},
)

ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", help="TOML file with the settings; without it, all defaults.")
]


def main() -> None:
    """The entry of the `mirror` command."""
    try:
        application()
    except ConfigError as error:
        _refuse(error)
    except MirrorError as error:
        print(f"mirror: {error}", file=sys.stderr)
        raise SystemExit(1) from error
    except UnicodeEncodeError:
        # bytes that are no text may name a file, but cannot be written down or asked for
        if odd := [word for word in sys.argv if not _is_text(word)]:
            _refuse(ConfigError([f"not text in UTF-8: {word!r}" for word in odd]))
        raise


def _is_text(word: str) -> bool:
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse(error: ConfigError) -> NoReturn:
    for mistake in error.mistakes:
        print(f"mirror: {mistake}", file=sys.stderr)
    raise SystemExit(2) from error


def parse_images(images: Sequence[str], config: settings.Config) -> list[Image]:
    """Images as they are given on the command line. Raises `ConfigError` with every one that is none."""
    table = settings.routing_table(config)
    parsed, mistakes = [], []
    for text in images:
        try:
            parsed.append(parse_image(text, table))
        except RequestError as error:
            mistakes.append(str(error))
    if mistakes:
        raise ConfigError(mistakes)
    return parsed


def table_console() -> Console:
    """For tables on standard output: as wide as the terminal, and never cut where it is piped."""
    return Console(width=None if sys.stdout.isatty() else 200)


@application.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit
