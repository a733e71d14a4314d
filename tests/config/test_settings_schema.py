"""The JSON schema of the configuration file accepts what the loader accepts, as far as one setting can say."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jsonschema import Draft7Validator

from mirror.config import values
from mirror.config.settings_schema import settings_schema
from mirror.values.sizes import parse_capacity, parse_size
from tests.support.command import mirror

ROOT = Path(__file__).parents[2]
SCHEMA = settings_schema("1.2.3")
CHECK = Draft7Validator(SCHEMA)
EXAMPLES = sorted(str(path.relative_to(ROOT)) for path in (*ROOT.glob("config/*.toml"), *ROOT.glob("k8s/**/*.toml")))


def mistakes(text: str) -> list[str]:
    """What the schema says against a file."""
    return [error.message for error in CHECK.iter_errors(tomllib.loads(text))]


def blocks() -> Iterator[tuple[str, str]]:
    """Each piece on a page of the documentation that is a configuration by itself, with the page. Pieces that belong
    below a table of the text before them are none.
    """
    known = set(SCHEMA["properties"])
    below = re.compile(r"^\[{2}\w+\.\w+", re.MULTILINE)
    for page in sorted(ROOT.glob("docs/**/*.md")):
        for text in re.findall(r"```toml\n(.*?)```", page.read_text(), re.DOTALL):
            try:
                content = tomllib.loads(text)
            except tomllib.TOMLDecodeError:
                continue
            first = re.search(r"^\[.*", text, re.MULTILINE)
            if content and content.keys() <= known and not (first and below.match(first[0])):
                yield str(page.relative_to(ROOT)), text


def schema_of(path: str) -> dict[str, Any]:
    """The schema of one setting, such as `scrub.rate`."""
    table, name = path.split(".")
    found: dict[str, Any] = SCHEMA["definitions"][table.title()]["properties"][name]
    return found


def test_it_is_a_schema_of_a_version_that_editors_know() -> None:
    Draft7Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "http://json-schema.org/draft-07/schema#"
    assert "1.2.3" in SCHEMA["$id"]
    assert "1.2.3" in SCHEMA["title"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_are_accepted(name: str) -> None:
    """As they stand; the large one also with all that is commented out in it."""
    text = (ROOT / name).read_text()
    assert mistakes(text) == []
    if name != "config/mirror.toml":
        return
    lines = [re.sub(r"^#(?=\[|\w+ = )", "", line) for line in text.splitlines()]
    whole: dict[str, Any] = {}
    for part in re.split(r"\n(?=\[{1,2}\w+\])", "\n".join(lines)):
        # a part with two ways to write one setting is no TOML
        try:
            content = tomllib.loads(part)
        except tomllib.TOMLDecodeError:
            continue
        whole |= content
        assert [error.message for error in CHECK.iter_errors(content)] == []
    assert len(whole) > 10


def test_the_pieces_on_the_pages_are_accepted() -> None:
    found = list(blocks())
    assert len(found) > 15
    assert [(page, mistake) for page, text in found for mistake in mistakes(text)] == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[sever]\nworkers = 2", "'sever' was unexpected"),
        ("[server]\nworker = 2", "'worker' was unexpected"),
        ('[server]\nworkers = "2"', "'2' is not of type 'integer'"),
        ("[server]\nworkers = 65", "65 is greater than the maximum of 64"),
        ('[server]\nidle_timeout = "5 parsecs"', "does not match"),
        ('[store]\ncapacity = "500G"', "does not match"),
        ('[scrub]\nrate = "fast"', "does not match"),
        ("[scrub]\nrate = 0", "0 is less than the minimum of 1"),
        ("[store]\nquarantine_max_size = -1", "-1 is less than the minimum of 0"),
        ('[log]\nlevel = "loud"', "is not one of"),
        ("[access]\ntoken_lifetime = 59", "less than the minimum of 60"),
        ('[[upstream]]\nurl = "https://ghcr.io"', "'name' is a required property"),
        ('[[upstream]]\nname = "a.example"\nurl = "ftp://a.example"', "does not match"),
        ('[[sync]]\nform = "docker.io/library/a"\nevery = "1h"', "'form' was unexpected"),
        ("[[upstream]]\nname = 'a.example'\nhedge_after = 0", "less than or equal to the minimum of 0"),
    ],
)
def test_a_mistake_is_refused(text: str, said: str) -> None:
    assert any(said in mistake for mistake in mistakes(text)), mistakes(text)


@pytest.mark.parametrize(
    "text",
    [
        "[server]\nidle_timeout = 75",
        '[server]\nlisten = "127.0.0.1:5000,unix:/run/mirror.sock"',
        '[store]\ncapacity = "99.5 %"',
        '[server]\nwait_for_upstream = "0"',
        "[store]\nquarantine_max_size = 0",
        "[scrub]\nrate = 5000000",
        '[content]\ndeny = "docker.io/library/a,docker.io/library/b"',
        '[[upstream]]\nname = "a.example"\nendpoints = ["https://b.example", { url = "https://c.example" }]',
        '[[hosted]]\nname = "corp"\nquotas = { "team-a/**" = "50GB" }',
        '[[hosted]]\nname = "corp"\nimmutable = [{ except = ["latest"] }]',
    ],
)
def test_each_way_of_writing_is_accepted(text: str) -> None:
    assert mistakes(text) == []


def test_defaults_are_as_one_writes_them_and_secrets_have_none() -> None:
    assert schema_of("scrub.every")["default"] == "30d"
    assert schema_of("index.timeout")["default"] == "100ms"
    assert schema_of("server.idle_timeout")["default"] == "75s"
    assert schema_of("server.workers")["default"] == 1
    assert schema_of("index.url") == {
        "type": "string",
        "format": "password",
        "writeOnly": True,
        "description": "URL of a Redis: redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://; empty: an"
        " embedded index beside the blobs.",
    }
    assert "null" not in json.dumps(SCHEMA)
    assert mistakes("") == []


@given(
    st.from_regex(r"\A[0-9]{1,4}(\.[0-9]{1,3})? ?[kKmMgGtTiIbB]{0,3}\Z") | st.text("0123456789.%kKmMiIbB ", max_size=8)
)
@example("1KiB")
@example("1iB")
@example("5 %")
def test_sizes_are_those_that_the_loader_reads(text: str) -> None:
    for name, parse in (("store.quarantine_max_size", parse_size), ("store.capacity", parse_capacity)):
        try:
            parse(text)
            reads = True
        except ValueError as error:
            # how large a number may be, no pattern says
            reads = "above 0%" in str(error) or "of 0" in str(error)
        assert bool(re.search(schema_of(name)["pattern"], text)) == reads


@given(st.lists(st.sampled_from(["5", "1.5", "s", "ms", "MS", "h", "d", "w", " ", "x", "."]), max_size=6).map("".join))
def test_durations_are_those_that_the_loader_reads(text: str) -> None:
    try:
        values.seconds(text)
        reads = True
    except ValueError as error:
        reads = "30 years" in str(error)
    assert bool(re.search(schema_of("server.idle_timeout")["pattern"], text)) == reads


def test_the_command_prints_it() -> None:
    printed = mirror("schema").json
    assert printed["$schema"] == SCHEMA["$schema"]
    assert printed["properties"].keys() == SCHEMA["properties"].keys()
