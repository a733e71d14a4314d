"""What all commands share: the application, options that are the same everywhere, how errors end and text is shown.

Exit status: 0 done, 1 failed, 2 unusable arguments or configuration.

Whatever a command shows goes through `say`, `complain`, `say_json` or a `TextTable`: much of it comes from registries
and layouts, and none of it may be taken for markup or reach a terminal as an escape sequence.
"""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import typer
from rich.console import Console
from rich.progress import TextColumn
from rich.table import Table
from rich.text import Text

from mirror import __version__
from mirror import config as settings
from mirror.errors import ConfigError, MirrorError, RequestError
from mirror.oci.text import printable
from mirror.policy.image_names import Image, parse_image

_NOT_ASCII: Final = re.compile(r"[^\x20-\x7e\n]")

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
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # a terminal of another encoding is shown what it cannot show as an escape
            stream.reconfigure(errors="backslashreplace")
    try:
        application()
    except ConfigError as error:
        _refuse(error)
    except MirrorError as error:
        complain(f"mirror: {error}")
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
        complain(f"mirror: {mistake}")
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


def say(text: str) -> None:
    """A line on standard output, or several."""
    print(printable(text, keep="\n\t"))


def complain(text: str) -> None:
    """A line on standard error, or several."""
    print(printable(text, keep="\n\t"), file=sys.stderr, flush=True)


def say_json(value: Any, *, indent: int | None = 1) -> None:
    """A value for programs on standard output, on one line without `indent`."""
    print(_NOT_ASCII.sub(_in_json, json.dumps(value, ensure_ascii=False, indent=indent)))


def _in_json(character: re.Match[str]) -> str:
    """What is not printable, as JSON escapes it; only strings hold such a thing."""
    if character[0].isprintable():
        return character[0]
    units = character[0].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


class TextTable:
    """A table on standard output: as wide as the terminal, and never cut if it is piped. Its cells are plain text."""

    def __init__(self, *columns: str) -> None:
        self._table = Table(*columns)

    def add_row(self, *cells: str) -> None:
        """One cell for each column."""
        self._table.add_row(*(Text(printable(cell, keep="\n")) for cell in cells))

    def add_section(self) -> None:
        """A line across, below what was added so far."""
        self._table.add_section()

    def show(self) -> None:
        """Print it."""
        Console(width=None if sys.stdout.isatty() else 200).print(self._table)


def description_column(**more: Any) -> TextColumn:
    """What a progress bar is about, as plain text."""
    return TextColumn("{task.description}", markup=False, **more)


@application.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        say(__version__)
        raise typer.Exit
