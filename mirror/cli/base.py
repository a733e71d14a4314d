"""What all commands share: the application, common options, how errors end a command, and how text is printed.

Exit status: 0 done, 1 failed, 2 unusable arguments or configuration.

Commands print only with `say`, `complain`, `say_json` and `TextTable`. Much of the text comes from registries and OCI
layouts: it must not be interpreted as markup, and no escape sequence in it may reach a terminal.
"""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from mirror import __version__, telemetry
from mirror import config as settings
from mirror.config.wording import refused_value
from mirror.errors import ConfigError, MirrorError, RequestError
from mirror.oci.text import printable
from mirror.policy.image_names import Image, parse_image

_NOT_ASCII: Final = re.compile(r"[^\x20-\x7e\n]")


class _Commands(TyperGroup):
    """All commands. What is wrong with an argument is said as it is of a setting."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was named. Raises `typer.BadParameter`."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            error.message = refused_value(error.__cause__) or error.message
            raise


application = typer.Typer(
    name="mirror",
    cls=_Commands,
    help="A pull-through caching mirror for OCI and Docker registries, which also hosts images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # help and messages are plain text: «[/variant]» and «[IMAGE]» are no markup
    rich_markup_mode=None,
    context_settings={"max_content_width": 120},
)

ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", help="TOML file with the settings; without it, the defaults apply.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def main() -> None:
    """The entry of the `mirror` command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # characters that the terminal's encoding does not have are printed as escapes
            stream.reconfigure(errors="backslashreplace")
    try:
        application()
    except ConfigError as error:
        _refuse(error)
    except MirrorError as error:
        complain(f"mirror: {error}")
        raise SystemExit(1) from error
    except UnicodeEncodeError:
        # bytes that are not UTF-8 can name a file, but cannot be printed or sent
        if invalid := [word for word in sys.argv if not _is_text(word)]:
            _refuse(ConfigError([f"not UTF-8: {word!r}" for word in invalid]))
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


def load(config: Path | None, *, level: str = "error") -> settings.Config:
    """The settings. This command's log then has messages of this level and above. Raises `ConfigError`."""
    loaded = settings.load(config)
    telemetry.set_up_logging(level)
    return loaded


def parse_images(images: Sequence[str], loaded: settings.Config) -> list[Image]:
    """The images that are named on the command line. Raises `ConfigError` with every name that is not valid."""
    parse = _parser(loaded)
    parsed, mistakes = [], []
    for text in images:
        try:
            parsed.append(parse(text))
        except RequestError as error:
            mistakes.append(str(error))
    if mistakes:
        raise ConfigError(mistakes)
    return parsed


def _parser(loaded: settings.Config) -> Callable[[str], Image]:
    """Parses images; those of virtual registries become images of members, which is said on standard error."""
    table = settings.routing_table(loaded)
    if not loaded.virtual:
        return lambda text: parse_image(text, table)
    # imported here: few configurations have virtual registries, and the files of the store take time to import
    from mirror.app.stored_records import stored_records
    from mirror.app.virtual import MemberNames

    def parse(text: str) -> Image:
        with stored_records(loaded) as stored:
            image = MemberNames(loaded, stored.shown.repositories.is_taken).parse(text)
        written = parse_image(text, table, virtual=True)
        if written.repo != image.repo:
            complain(f"{written.repo} is {image.repo}")
        return image

    return parse


def counted(count: int, noun: str) -> str:
    """`1 image`, `2 images`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def format_minute(at: float | None) -> str:
    """`2025-01-31 12:30` in UTC, for a time in epoch seconds; empty if there is none."""
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M}" if at else ""


def say(text: str) -> None:
    """Print lines on standard output."""
    print(printable(text, keep="\n\t"))


def complain(text: str) -> None:
    """Print lines on standard error."""
    print(printable(text, keep="\n\t"), file=sys.stderr, flush=True)


def say_json(value: Any, *, indent: int | None = 1) -> None:
    """Print a value as JSON on standard output, on one line if `indent` is None."""
    print(_NOT_ASCII.sub(_in_json, json.dumps(value, ensure_ascii=False, indent=indent)))


def _in_json(character: re.Match[str]) -> str:
    """A character that is not printable, as a JSON escape. Only strings contain such characters."""
    if character[0].isprintable():
        return character[0]
    units = character[0].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


class TextTable:
    """A table on standard output, as wide as the terminal; if piped, 200 columns wide. Its cells are plain text."""

    def __init__(self, *columns: str) -> None:
        self._table = Table(*columns)

    def add_row(self, *cells: str) -> None:
        """Add a row, with one cell for each column."""
        self._table.add_row(*(Text(printable(cell, keep="\n")) for cell in cells))

    def add_section(self) -> None:
        """Add a horizontal line below the rows so far."""
        self._table.add_section()

    def show(self) -> None:
        """Print the table."""
        Console(width=None if sys.stdout.isatty() else 200).print(self._table)


def description_column(**more: Any) -> TextColumn:
    """The column with the description of a progress bar, as plain text."""
    return TextColumn("{task.description}", markup=False, **more)


def progress_bars(*, quiet: bool = False) -> Progress:
    """Progress bars for bytes, on standard error; nothing is shown if it is no terminal, or if `quiet`."""
    columns = description_column(), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal)


@application.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        say(__version__)
        raise typer.Exit
