"""Finds the images in texts that users have already: plain lists, Kubernetes manifests, Compose files.

The functions are pure: from a text and its name to the images in it, each with its line; `list_files.py` reads the
files. The texts are not trusted. YAML is read as events only: no Python objects are constructed from tags, an alias
refers to the same value however often it is used, and the depth and the number of values are bounded.

Kubernetes objects of every kind are searched: any object with a `kind` that contains, at any level, a list called
`containers`, `initContainers` or `ephemeralContainers` is taken to run these containers. So custom resources that
contain a pod template are understood, too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import yaml

from mirror.errors import MirrorError
from mirror.policy.image_names import Image, looks_like_host, parse_image
from mirror.policy.routing import RoutingTable

#: The largest file that is read, in bytes. The largest manifests that projects publish have a few megabytes; a list of
#: all pods of a cluster may have more.
LARGEST: Final = 32 * 1024 * 1024

#: How many levels and how many values (YAML events) one file may have.
_DEEPEST: Final = 100
_MOST_VALUES: Final = 1_000_000

_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_HUB: Final = "docker.io"
_CONTAINERS: Final = ("containers", "initContainers", "ephemeralContainers")
_NULLS: Final = ("", "~", "null", "Null", "NULL")
#: Template and substitution marks, which are in a text only if it was not rendered.
_TEMPLATE: Final = re.compile(r"\{\{|\$\{|\$\(")
#: Kinds that describe other objects, and run no containers themselves.
_DESCRIPTIONS: Final = ("CustomResourceDefinition",)


class ListMalformed(ValueError):
    """A text that does not have the expected format. `line` counts from 1; 0 if the error is not about one line."""

    def __init__(self, name: str, line: int, reason: str) -> None:
        super().__init__(f"{name}:{line}: {reason}" if line else f"{name}: {reason}")
        self.line = line


@dataclass(frozen=True, slots=True)
class Named:
    """An image's name as it is written, and the place where it is written (`deploy.yaml:12`).

    `hub` is true if a name without a registry means Docker Hub there, whatever the mirror's default registry is.
    """

    text: str
    where: str
    hub: bool = False


@dataclass(frozen=True, slots=True)
class Listed:
    """The images that a text names. `warnings` are for people: parts of the text that could not be used."""

    images: tuple[Named, ...] = ()
    warnings: tuple[str, ...] = ()

    def __add__(self, other: Listed) -> Listed:
        return Listed(self.images + other.images, self.warnings + other.warnings)


def resolve_images(named: Iterable[Named], table: RoutingTable) -> tuple[dict[Image, list[str]], list[str]]:
    """The named images, each once, with the places that name it; and a message for each name that is not valid or that
    this mirror does not serve.
    """
    found: dict[Image, list[str]] = {}
    mistakes: dict[str, None] = {}
    for one in named:
        try:
            found.setdefault(parse_image(_whole(one, table), table), []).append(one.where)
        except MirrorError as error:
            said = str(error) if one.text in str(error) else f"{one.text}: {error}"
            mistakes[f"{one.where}: {said}" if one.where else said] = None
    return found, list(mistakes)


def _whole(named: Named, table: RoutingTable) -> str:
    first, slash, _ = named.text.partition("/")
    if named.hub and table.registry(_HUB) and not (slash and looks_like_host(first)):
        return f"{_HUB}/{named.text}"
    return named.text


# --------------------------------------------------------------------------------------------------- plain lists


def read_plain(text: str, name: str) -> Listed:
    """The images of a plain list: one image a line, `#` begins a comment. Raises `ListMalformed`."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        words = re.sub(r"(^|\s)#.*", "", line).split()
        if len(words) > 1:
            raise ListMalformed(name, number, f"more than one image on a line: {line.strip()[:80]!r}")
        found += [Named(word, f"{name}:{number}") for word in words]
    return Listed(tuple(found))


# ---------------------------------------------------------------------------------------------------- Kubernetes


def read_kubernetes(text: str, name: str) -> Listed:
    """The images of every container and of image volumes, in any number of documents. Raises `ListMalformed`.

    A template that was not rendered causes a warning, because the images that it will name are unknown.
    """
    try:
        documents = list(_documents(text, name))
    except ListMalformed as error:
        if "{{" not in text:
            raise
        return Listed(warnings=(f"{error} (a template? render it first, such as with helm template)",))
    found, warnings = [], []
    for document in documents:
        warnings += _overrides(document, name)
        for image in _in_objects(document):
            where = f"{name}:{_line(image)}" if _line(image) else name
            if _TEMPLATE.search(image):
                warnings.append(f"{where}: {image[:80]} is a template: render it first")
            else:
                found.append(Named(str(image).strip(), where, hub=True))
    return Listed(tuple(found), tuple(warnings))


def _overrides(document: Any, name: str) -> list[str]:
    """Warnings for a kustomization that replaces images: the names in the files beside it may not be the final ones."""
    if isinstance(document, dict) and document.get("kind") == "Kustomization" and document.get("images"):
        return [f"{name}: replaces images: render it first, with kubectl kustomize"]
    return []


def _in_objects(document: Any) -> Iterator[str]:
    """The images in every object that has a `kind`, at any level. A value that aliases repeat is searched only once."""
    seen: set[tuple[int, bool]] = set()
    waiting: list[tuple[Any, bool]] = [(document, False)]
    while waiting:
        value, within = waiting.pop()
        if isinstance(value, dict):
            kind = value.get("kind")
            if isinstance(kind, str) and kind in _DESCRIPTIONS:
                continue
            within = within or isinstance(kind, str)
        if not isinstance(value, dict | list) or (id(value), within) in seen:
            continue
        seen.add((id(value), within))
        if within and isinstance(value, dict):
            yield from _of_pod(value)
        below = value.values() if isinstance(value, dict) else value
        waiting += [(item, within) for item in reversed(below)]


def _of_pod(value: Mapping[str, Any]) -> Iterator[str]:
    """The images of a pod's `spec`, or of a mapping that looks like one."""
    for key in _CONTAINERS:
        for container in _mappings(value.get(key)):
            image = _get(container, "image")
            if isinstance(image, str) and image.strip():
                yield image
    for volume in _mappings(value.get("volumes")):
        source = _get(volume, "image")
        reference = _get(source, "reference") if isinstance(source, dict) else None
        if isinstance(reference, str) and reference.strip():
            yield reference


def _mappings(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


# ------------------------------------------------------------------------------------------------------- Compose


def read_compose(text: str, name: str, environment: Mapping[str, str]) -> Listed:
    """The images of every service and of image volumes in a Compose file. Raises `ListMalformed`.

    Services whose `pull_policy` is `build` or `never` are left out. Variables are interpolated as Compose does it.
    """
    found: list[Named] = []
    warnings: list[str] = []
    for document in _documents(text, name):
        if document is None:
            continue
        services = _get(document, "services") if isinstance(document, dict) else None
        if not isinstance(services, dict):
            raise ListMalformed(name, 0, "not a Compose file: it has no services")
        if _get(document, "include"):
            warnings.append(f"{name}: includes other files: give these, too")
        for service, settings in services.items():
            if isinstance(settings, dict):
                for image in _of_service(settings):
                    where = f"{name}:{_line(image)}" if _line(image) else f"{name}: {service}"
                    found += _interpolated(image, where, environment, warnings)
                if isinstance(extended := _get(settings, "extends"), dict) and extended.get("file"):
                    warnings.append(f"{name}: {service} extends {extended['file']}: give that file, too")
    return Listed(tuple(found), tuple(warnings))


def _of_service(settings: Mapping[str, Any]) -> Iterator[str]:
    if _get(settings, "pull_policy") not in ("build", "never"):
        image = _get(settings, "image")
        if isinstance(image, str) and image.strip():
            yield image
    for volume in _mappings(_get(settings, "volumes")):
        source = _get(volume, "source")
        if _get(volume, "type") == "image" and isinstance(source, str):
            yield source


def _interpolated(image: str, where: str, environment: Mapping[str, str], warnings: list[str]) -> list[Named]:
    def unset(variable: str) -> None:
        warnings.append(f"{where}: {variable} is not set, so it is blank")

    try:
        written = interpolate(image, environment, unset)
    except ValueError as error:
        raise ListMalformed(where, 0, str(error)) from error
    return [Named(written.strip(), where, hub=True)] if written.strip() else []


_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OPERATOR: Final = re.compile(r":?[-?+]")


def interpolate(
    text: str, environment: Mapping[str, str], unset: Callable[[str], None] = lambda _: None, depth: int = 0
) -> str:
    """The text with its variables replaced, as in the Compose specification ("Interpolation"): `$NAME`, `${NAME}`,
    `${NAME:-default}`, `${NAME-default}`, `${NAME:?message}`, `${NAME:+replacement}`, nested ones, and `$$` for a
    dollar.

    `unset` is called with the name of each variable that is not set and has no default. Raises `ValueError` if the text
    is malformed or a required variable is not set.
    """
    if depth > 10:
        raise ValueError("variables within variables, more than 10 deep")
    made, position = [], 0
    while (dollar := text.find("$", position)) >= 0:
        made.append(text[position:dollar])
        if text.startswith("$$", dollar):
            made.append("$")
            position = dollar + 2
        elif text.startswith("${", dollar):
            end = _closing(text, dollar + 2)
            made.append(_expression(text[dollar + 2 : end], environment, unset, depth))
            position = end + 1
        elif found := _NAME.match(text, dollar + 1):
            made.append(_expression(found[0], environment, unset, depth))
            position = found.end()
        else:
            raise ValueError(f"a lone $ in {text[:80]!r}; write $$ for a dollar")
    return "".join([*made, text[position:]])


def _closing(text: str, position: int) -> int:
    """The position of the brace that closes the one opened before `position`."""
    open_ = 1
    for found in re.compile(r"\$\{|\}").finditer(text, position):
        open_ += 1 if found[0] == "${" else -1
        if not open_:
            return found.start()
    raise ValueError(f"a ${{ that is not closed in {text[:80]!r}")


def _expression(inner: str, environment: Mapping[str, str], unset: Callable[[str], None], depth: int) -> str:
    """The value of an expression, which is the text between the braces."""
    name = _NAME.match(inner)
    if name is None:
        raise ValueError(f"not the name of a variable: {inner[:80]!r}")
    rest = inner[name.end() :]
    value = environment.get(name[0])
    if not rest:
        if value is None:
            unset(name[0])
        return value or ""
    operator = _OPERATOR.match(rest)
    if operator is None:
        raise ValueError(f"not understood: ${{{inner[:80]}}}")
    given = bool(value) if operator[0].startswith(":") else value is not None
    word = rest[operator.end() :]
    if operator[0].endswith("+"):
        return interpolate(word, environment, unset, depth + 1) if given else ""
    if given:
        return value or ""
    if operator[0].endswith("?"):
        raise ValueError(f"{name[0]} must be set: {interpolate(word, environment, unset, depth + 1)}")
    return interpolate(word, environment, unset, depth + 1)


def read_env(text: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of a `.env` file and of `environment`, which takes precedence. Lines that set no variable are
    ignored.
    """
    found: dict[str, str] = {}
    for line in text.splitlines():
        name, equals, value = line.strip().removeprefix("export ").partition("=")
        name, value = name.strip(), value.strip()
        if not equals or not _NAME.fullmatch(name):
            continue
        if literal := re.match(r"'([^']*)'", value):
            found[name] = literal[1]
            continue
        if quoted := re.match(r'"((?:[^"\\]|\\.)*)"', value):
            value = re.sub(r"\\(.)", r"\1", quoted[1])
        else:
            value = re.sub(r"(^|\s)#.*", "", value).strip()
        try:
            found[name] = interpolate(value, {**found, **environment})
        except ValueError:
            continue
    return {**found, **environment}


# ---------------------------------------------------------------------------------------------------------- YAML


class _Text(str):
    """A string of a YAML file, with its line number."""

    __slots__ = ("line",)
    line: int


def _line(text: str) -> int:
    return text.line if isinstance(text, _Text) else 0


def _get(mapping: Mapping[str, Any], key: str) -> Any:
    """The value of a key in a mapping or in what `<<` merges into it; the mapping's own value takes precedence."""
    waiting: list[Any] = [mapping]
    seen: set[int] = set()
    while waiting:
        value = waiting.pop(0)
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, list):
            waiting = [*value, *waiting]
        elif isinstance(value, dict):
            if key in value:
                return value[key]
            waiting.insert(0, value.get("<<"))
    return None


def _documents(text: str, name: str) -> Iterator[Any]:
    """Every document of a text, made of mappings, lists, strings and None. Raises `ListMalformed`."""
    if name.lower().endswith(".json"):
        yield _read_json(text, name)
        return
    if text.lstrip().startswith("{"):
        # output of kubectl as JSON may be large, and the JSON parser is faster
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            pass
        else:
            yield value
            return
    try:
        yield from _read_yaml(text, name)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        # newer parsers have a nesting limit of their own, which may be reached first
        deep = "nesting depth" in (error.problem or "")
        problem = f"more than {_DEEPEST} levels" if deep else f"not YAML: {error.problem}"
        raise ListMalformed(name, mark.line + 1 if mark else 0, problem) from error
    except yaml.YAMLError as error:
        raise ListMalformed(name, 0, f"not YAML: {' '.join(str(error).split())[:200]}") from error


def _read_json(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ListMalformed(name, error.lineno, f"not JSON: {error.msg}") from error
    except RecursionError as error:
        raise ListMalformed(name, 0, "too deep") from error


def _read_yaml(text: str, name: str) -> Iterator[Any]:
    """Build the documents from YAML events. A second key of the same name replaces the first; keys that are not strings
    are dropped.
    """
    building = _Building(name)
    for number, event in enumerate(yaml.parse(text, Loader=_LOADER)):
        line = event.start_mark.line + 1 if event.start_mark else 0
        if number > _MOST_VALUES:
            raise ListMalformed(name, line, f"more than {_MOST_VALUES} values")
        if isinstance(event, yaml.DocumentStartEvent):
            building = _Building(name)
        elif isinstance(event, yaml.DocumentEndEvent):
            yield building.root
        elif isinstance(event, yaml.AliasEvent):
            building.alias(event.anchor or "", line)
        elif isinstance(event, yaml.ScalarEvent):
            building.add(_scalar(event, line), event.anchor)
        elif isinstance(event, yaml.MappingStartEvent):
            building.open({}, event.anchor, line)
        elif isinstance(event, yaml.SequenceStartEvent):
            building.open([], event.anchor, line)
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            building.close()


def _scalar(event: yaml.ScalarEvent, line: int) -> _Text | None:
    if not event.style and event.value in _NULLS:
        return None
    text = _Text(event.value)
    text.line = line
    return text


class _Building:
    """One document under construction."""

    def __init__(self, name: str) -> None:
        self.root: Any = None
        self._name = name
        self._open: list[dict[str, Any] | list[Any]] = []
        #: For each open mapping: a list with the key that waits for its value; empty if a key is next.
        self._keys: list[list[Any]] = []
        self._anchors: dict[str, Any] = {}

    def open(self, value: dict[str, Any] | list[Any], anchor: str | None, line: int) -> None:
        self.add(value, anchor)
        self._open.append(value)
        self._keys.append([])
        if len(self._open) > _DEEPEST:
            raise ListMalformed(self._name, line, f"more than {_DEEPEST} levels")

    def close(self) -> None:
        self._open.pop()
        self._keys.pop()

    def alias(self, anchor: str, line: int) -> None:
        if anchor not in self._anchors:
            raise ListMalformed(self._name, line, f"the alias *{anchor[:40]} stands for nothing")
        self.add(self._anchors[anchor], None)

    def add(self, value: Any, anchor: str | None) -> None:
        if anchor:
            self._anchors[anchor] = value
        if not self._open:
            self.root = value
        elif isinstance(parent := self._open[-1], list):
            parent.append(value)
        elif not self._keys[-1]:
            self._keys[-1].append(value)
        else:
            key = self._keys[-1].pop()
            if isinstance(key, str):
                parent[str(key)] = value
