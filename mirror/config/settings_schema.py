"""The JSON schema of the configuration file, for editors and for checks before a mirror is there.

It is made from the settings, so it has every name, type, default and description. It accepts what is written as the
documentation writes it. What concerns several settings together, and files that settings name, only `load` checks.
Draft 7 is what editors of TOML know.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from pydantic.json_schema import GenerateJsonSchema

from mirror.config import values
from mirror.config.settings import Config
from mirror.config.tables.upstream_settings import endpoint

#: A duration: `1h30m`, or a number of seconds, which may have quotes. The pattern concerns text alone, a bound numbers.
_DURATION: Final = {
    "type": ["number", "string"],
    "minimum": 0,
    "pattern": r"^\s*([0-9]+(\.[0-9]+)?\s*([mM][sS]|[sSmMhHdDwW])\s*)+$|^\s*[0-9]+(\.[0-9]+)?\s*$",
    "examples": ["30s", "10m", "6h", "7d"],
}
_BYTES: Final = r"[0-9]{1,20}(\.[0-9]{1,9})? ?(([kKmMgGtTpP][iI]?)?[bB])?"
_SIZE: Final = {"pattern": rf"^\s*{_BYTES}\s*$", "minimum": 0, "examples": ["500GB", "20GiB", "1048576"]}
#: What is known of a string that one of these functions checks.
_STRINGS: Final[dict[object, dict[str, Any]]] = {
    values.size: _SIZE,
    values.rate: {**_SIZE, "minimum": 1, "examples": ["20MB", "5MiB"]},
    values.capacity: {
        "pattern": rf"^\s*({_BYTES}|[0-9]{{1,3}}(\.[0-9]{{1,9}})? ?%)\s*$",
        "minimum": 1,
        "examples": ["80%", "500GB", "2TiB"],
    },
    values.listen: {"pattern": r"^(unix:/.*|.+:[0-9]{1,5})$", "examples": ["0.0.0.0:5000", "unix:/run/mirror.sock"]},
    values.admin_listen: {"pattern": r"^(unix:/.*|.+:[0-9]{1,5})?$", "examples": ["127.0.0.1:5001"]},
    values.url: {"pattern": "^[hH][tT][tT][pP][sS]?://", "examples": ["https://registry.example.com"]},
    values.collector: {"pattern": "^([hH][tT][tT][pP][sS]?://.*)?$", "examples": ["http://127.0.0.1:4318/v1/traces"]},
    values.network: {"examples": ["10.0.0.0/8", "::1"]},
    values.registry: {"examples": ["ghcr.io", "*.gcr.io"]},
    values.route_pattern: {"pattern": r"/|\*\*", "examples": ["docker.io/library/*", "ghcr.io/**"]},
    values.name_pattern: {"examples": ["team-a/**"]},
    values.tag_pattern: {"examples": ["v*", "latest"]},
    values.image_pattern: {"examples": ["docker.io/library/*:3.1*"]},
    values.pin_pattern: {"examples": ["docker.io/library/*:3.1*"]},
}
_UNITS: Final = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
#: Bounds that pydantic copies as they are written where a setting may be left out.
_BOUNDS: Final = {"gt": "exclusiveMinimum", "ge": "minimum", "lt": "exclusiveMaximum", "le": "maximum"}


class _SettingsSchema(GenerateJsonSchema):
    """Schemas as the file is written: without null, which TOML does not have, and with durations and sizes."""

    def function_before_schema(self, schema: Any) -> dict[str, Any]:
        made = super().function_before_schema(schema)
        check = schema["function"]["function"]
        if check is values.as_text:
            return {**made, "type": ["integer", "string"]}
        if check is values.seconds:
            return {**_DURATION, **{word: value for word, value in made.items() if word != "type"}}
        if check is values.split:
            return {"anyOf": [made, {"type": "string"}]}
        if check is endpoint:
            return {"anyOf": [{"type": "string", **_STRINGS[values.url]}, made]}
        return made

    def function_after_schema(self, schema: Any) -> dict[str, Any]:
        check = schema["function"]["function"]
        made = {**super().function_after_schema(schema), **_STRINGS.get(check, {})}
        if isinstance(check, partial):
            # a bound of a number that is checked after another check
            made |= {_BOUNDS[name]: value for name, value in check.keywords.items() if name in _BOUNDS}
        return made

    def nullable_schema(self, schema: Any) -> dict[str, Any]:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: Any) -> dict[str, Any]:
        made = super().default_schema(schema)
        default = made.get("default")
        if default is None or made.get("writeOnly") or isinstance(default, dict):
            # nothing is set, or a secret, or the table's own settings have their defaults
            made.pop("default", None)
        elif made.get("pattern") == _DURATION["pattern"]:
            made["default"] = _duration(default)
        return made

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def normalize_name(self, name: str) -> str:
        return super().normalize_name(name).removesuffix("Settings")


def settings_schema(version: str) -> dict[str, Any]:
    """The JSON schema of the configuration file of this version of the mirror."""
    made = Config.model_json_schema(ref_template="#/definitions/{model}", schema_generator=_SettingsSchema)
    definitions = made.pop("$defs")
    head = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$id": f"urn:registry-mirror:{version}:mirror.toml",
        "title": f"The configuration of registry-mirror {version}",
        "description": "Each setting is described in docs/configuration.md. `mirror check` also checks what concerns "
        "several settings together, and the files that are named.",
    }
    whole = {**head, **{name: part for name, part in made.items() if name not in head}, "definitions": definitions}
    read: dict[str, Any] = _as_draft_7(whole)
    return read


def _as_draft_7(part: Any, *, named: bool = False) -> Any:
    """The same with bounds by their names, without the titles of classes, and with each reference alone: draft 7
    ignores what is beside one. `named`: the keys are names of settings, and no words of JSON schema.
    """
    if isinstance(part, list):
        return [_as_draft_7(each) for each in part]
    if not isinstance(part, dict):
        return part
    if named:
        return {name: _as_draft_7(each) for name, each in part.items()}
    made: dict[str, Any] = {}
    for word, value in part.items():
        if word == "title" and "$schema" not in part:
            continue
        if word in ("default", "examples", "enum"):
            made[word] = value
        else:
            made[_BOUNDS.get(word) or word] = _as_draft_7(value, named=word in ("properties", "definitions"))
    if "exclusiveMinimum" in made:
        made.pop("minimum", None)
    if "$ref" in made and len(made) > 1:
        made["allOf"] = [{"$ref": made.pop("$ref")}]
    return made


def _duration(seconds: float) -> str | float:
    """A duration as it is written: `5m`; a number that is not a whole number of milliseconds stays one."""
    for unit, length in _UNITS:
        if seconds and not seconds % length:
            return f"{seconds // length:g}{unit}"
    milliseconds = round(seconds * 1000, 6)
    return f"{milliseconds:g}ms" if milliseconds and milliseconds.is_integer() else seconds
