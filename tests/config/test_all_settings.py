"""What the documentation allows as a value, each form of the configuration takes: the file and the environment."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from mirror.config import values
from mirror.config.loading import _with_environment
from mirror.config.settings import Config

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class _Setting:
    """In which `table` of the file it is. `place` is that of its variable, such as `SERVER__WORKERS`; empty in a list
    of tables, which has one variable for all of them.
    """

    table: str
    name: str
    field: FieldInfo
    place: str

    def __str__(self) -> str:
        return f"{self.section}.{self.name}"

    @property
    def section(self) -> str:
        """The part of the file under which the page has it."""
        return self.table.partition(".")[0]

    def read(self, value: Any) -> Any:
        """The value of the setting, by itself. Raises `ValidationError`."""
        kind: Any = Annotated[self.field.annotation, self.name, *self.field.metadata]
        return TypeAdapter(kind).validate_python(value)

    def accepts(self, value: Any) -> bool:
        """Whether the file may have it."""
        try:
            self.read(value)
        except ValidationError:
            return False
        return True

    def has(self, check: object) -> bool:
        """Whether this is among what is said of its type."""
        return check in _parts(self.field.annotation, *self.field.metadata)


def _parts(*kinds: Any) -> Iterator[Any]:
    """All that a type is made of, with the functions of its validators."""
    for kind in kinds:
        yield kind
        yield getattr(kind, "func", None)
        yield from _parts(*get_args(kind))


def _table(kind: Any) -> tuple[type[BaseModel] | None, bool]:
    """The table that a field holds, and whether it is a list of such tables."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind, False
    inner = next((each for each in _parts(kind) if isinstance(each, type) and issubclass(each, BaseModel)), None)
    return inner, inner is not None


def _settings(model: type[BaseModel], table: str = "", place: str = "", *, listed: bool = False) -> Iterator[_Setting]:
    for name, field in model.model_fields.items():
        inner, is_list = _table(field.annotation)
        here = f"{place}__{name}".strip("_").upper()
        if inner is None:
            yield _Setting(table, field.alias or name, field, "" if listed else here)
        else:
            yield from _settings(inner, f"{table}.{name}".strip("."), here, listed=listed or is_list)


SETTINGS = list(_settings(Config))
NAMED = [setting for setting in SETTINGS if setting.place]


def _in_environment(setting: _Setting, text: str, patch: pytest.MonkeyPatch) -> Any:
    """The value that a variable gives the setting. Raises `ValidationError`."""
    with patch.context() as environment:
        environment.setenv(f"MIRROR__{setting.place}", text)
        found: Any = _with_environment({})
    for word in setting.place.lower().split("__"):
        found = found[word]
    return setting.read(found)


def _as_text(value: Any) -> str:
    """The value as one writes it in a variable."""
    return value if isinstance(value, str) else json.dumps(value)


def _examples() -> Iterator[tuple[_Setting, Any]]:
    """What config/mirror.toml shows of each setting."""
    table = ""
    for line in (ROOT / "config/mirror.toml").read_text().splitlines():
        if heading := re.fullmatch(r"#?\[{1,2}([\w.]+)\]{1,2}", line):
            table = heading[1]
        elif re.match(r"#?\w+ = ", line):
            [(name, value)] = tomllib.loads(line.removeprefix("#")).items()
            for setting in SETTINGS:
                if (setting.table, setting.name) == (table, name) and (setting.accepts(value) or value != "..."):
                    yield setting, value


def _documented(word: str) -> Iterator[_Setting]:
    """The settings of which the page says what a value means that this pattern finds, as in `0: never`."""
    section = ""
    for line in (ROOT / "docs/configuration.md").read_text().splitlines():
        if heading := re.fullmatch(r"## (?:`\[{1,2}(\w+)\]{1,2}`|Top level)", line):
            section = heading[1] or ""
        named, *about = line.removeprefix("| ").removesuffix(" |").split(" | ")
        if line.startswith("| ") and any(re.search(word, cell) for cell in about):
            names = re.findall(r"`(\w+)`", named)
            yield from (each for each in SETTINGS if each.section == section and each.name in names)


EXAMPLES = list(_examples())


def test_every_setting_has_an_example() -> None:
    """So the tests look at all of them, but for a secret that must have a certain form."""
    assert {str(setting) for setting in SETTINGS} - {str(setting) for setting, _ in EXAMPLES} == {"bucket.customer_key"}


@pytest.mark.parametrize(("setting", "value"), EXAMPLES, ids=str)
def test_the_environment_takes_what_the_file_takes(
    setting: _Setting, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one writes it there: text as it is, everything else as JSON, a list also with commas."""
    expected = setting.read(value)
    if not setting.place:
        return
    assert _in_environment(setting, _as_text(value), monkeypatch) == expected
    if isinstance(value, list):
        assert _in_environment(setting, ",".join(value), monkeypatch) == expected


ZERO = list(_documented(r"(?<![\w.])`?0`?:|^`?0`?$"))
EMPTY = list(_documented(r'(?<![\w{])`?""'))


def test_the_page_is_read() -> None:
    """Some of those whose value may be 0, and those whose value may be empty."""
    assert {"server.wait_for_upstream", "store.quarantine_max_size", "hosting.every", "route.minimum_age"} <= {
        *map(str, ZERO)
    }
    assert {*map(str, EMPTY)} == {".default_registry", "index.url", "trace.endpoint", "admin.listen", "pin.reason"}


@pytest.mark.parametrize("setting", ZERO, ids=str)
def test_a_zero_that_is_documented(setting: _Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have quotes, and a unit where there is one."""
    assert setting.accepts(0)
    assert setting.read("0") == setting.read(0)
    if setting.place:
        assert _in_environment(setting, "0", monkeypatch) == setting.read(0)


@pytest.mark.parametrize("setting", EMPTY, ids=str)
def test_an_empty_text_that_is_documented(setting: _Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that is set to nothing is one."""
    assert setting.accepts("")
    if setting.place:
        assert _in_environment(setting, "", monkeypatch) == setting.read("")


@pytest.mark.parametrize("setting", [each for each in SETTINGS if each.has(values.seconds)], ids=str)
def test_durations(setting: _Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """A number is one of seconds, with and without quotes. A number with another letter behind it is none."""
    [length] = [each for each in (3600.0, 30.0) if setting.accepts(each)][:1]
    assert {setting.read(form) for form in (length, f"{length}", f" {length:g} ", f"{length:g}s")} == {length}
    assert not any(map(setting.accepts, (True, "-5", f"{length:g}x", "", "nan")))
    if setting.place:
        assert _in_environment(setting, f"{length:g}", monkeypatch) == length


@pytest.mark.parametrize(
    "setting", [each for each in SETTINGS if any(map(each.has, (values.size, values.rate, values.capacity)))], ids=str
)
def test_sizes(setting: _Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """A number is one of bytes, with and without quotes."""
    one = {"a": 1} if get_origin(setting.field.annotation) is dict else None
    written = (lambda value: {"a": value}) if one else (lambda value: value)
    assert setting.read(written(1048576)) == setting.read(written("1048576"))
    assert not any(map(setting.accepts, map(written, (True, -1, 1.5, "", "5G"))))
    if setting.place:
        assert _in_environment(setting, "1048576", monkeypatch) == setting.read("1048576")


@pytest.mark.parametrize("setting", [each for each in NAMED if get_origin(each.field.annotation) is list], ids=str)
def test_lists_of_the_environment(setting: _Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them may be written with commas; an empty one is written as nothing."""
    assert setting.has(values.split)
    if setting.accepts([]):
        assert _in_environment(setting, "", monkeypatch) == _in_environment(setting, "[]", monkeypatch) == []
    else:
        with pytest.raises(ValidationError, match="at least 1 item"):
            _in_environment(setting, "", monkeypatch)
    for slip in ('["a"', '["a",]', "['a']", '"a","b"', '[["a"'):
        with pytest.raises(ValidationError, match="neither a list in JSON"):
            _in_environment(setting, slip, monkeypatch)


@pytest.mark.parametrize("setting", [each for each in NAMED if bool in _parts(each.field.annotation)], ids=str)
def test_yes_and_no(setting: _Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """As TOML writes them."""
    for text, value in (("true", True), ("false", False)):
        assert _in_environment(setting, text, monkeypatch) is setting.read(value) is value
