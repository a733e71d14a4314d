"""Finds the images in texts that users have already: plain lists, Kubernetes manifests, Compose files.

The functions are pure: from a text and its name to the images in it, each with its line; `list_files.py` reads the
files, and `documents.py` their YAML and JSON. The texts are not trusted.

Kubernetes objects of every kind are searched: any object with a `kind` that contains, at any level, a list called
`containers`, `initContainers` or `ephemeralContainers` is taken to run these containers. So custom resources that
contain a pod template are understood, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from mirror.errors import MirrorError
from mirror.policy.image_names import Image, parse_image
from mirror.policy.routing import RoutingTable, looks_like_host
from mirror.prefetch.documents import ListMalformed, documents, get, line_of

#: The largest file that is read, in bytes. The largest manifests that projects publish have a few megabytes; a list of
#: all pods of a cluster may have more.
LARGEST: Final = 32 * 1024 * 1024

_HUB: Final = "docker.io"
_CONTAINERS: Final = ("containers", "initContainers", "ephemeralContainers")
#: Template and substitution marks, which are in a text only if it was not rendered.
_TEMPLATE: Final = re.compile(r"\{\{|\$\{|\$\(")
#: Kinds that describe other objects, and run no containers themselves.
_DESCRIPTIONS: Final = ("CustomResourceDefinition",)


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
    images: dict[Image, list[str]] = {}
    mistakes: dict[str, None] = {}
    for name in named:
        try:
            images.setdefault(parse_image(_with_hub(name, table), table), []).append(name.where)
        except MirrorError as error:
            message = str(error) if name.text in str(error) else f"{name.text}: {error}"
            mistakes[f"{name.where}: {message}" if name.where else message] = None
    return images, list(mistakes)


def _with_hub(named: Named, table: RoutingTable) -> str:
    first, slash, _ = named.text.partition("/")
    if named.hub and table.registry(_HUB) and not (slash and looks_like_host(first)):
        return f"{_HUB}/{named.text}"
    return named.text


# --------------------------------------------------------------------------------------------------- plain lists


def read_plain(text: str, name: str) -> Listed:
    """The images of a plain list: one image a line, `#` begins a comment. Raises `ListMalformed`."""
    images = []
    for number, line in enumerate(text.splitlines(), 1):
        words = re.sub(r"(^|\s)#.*", "", line).split()
        if len(words) > 1:
            raise ListMalformed(name, number, f"more than one image on a line: {line.strip()[:80]!r}")
        images += [Named(word, f"{name}:{number}") for word in words]
    return Listed(tuple(images))


# ---------------------------------------------------------------------------------------------------- Kubernetes


def read_kubernetes(text: str, name: str) -> Listed:
    """The images of every container and of image volumes, in any number of documents. Raises `ListMalformed`.

    A template that was not rendered causes a warning, because the images that it will name are unknown.
    """
    try:
        parsed = list(documents(text, name))
    except ListMalformed as error:
        if "{{" not in text:
            raise
        return Listed(warnings=(f"{error} (a template? render it first, such as with helm template)",))
    images, warnings = [], []
    for document in parsed:
        warnings += _overrides(document, name)
        for image in _in_objects(document):
            where = f"{name}:{line_of(image)}" if line_of(image) else name
            if _TEMPLATE.search(image):
                warnings.append(f"{where}: {image[:80]} is a template: render it first")
            else:
                images.append(Named(str(image).strip(), where, hub=True))
    return Listed(tuple(images), tuple(warnings))


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
            image = get(container, "image")
            if isinstance(image, str) and image.strip():
                yield image
    for volume in _mappings(value.get("volumes")):
        source = get(volume, "image")
        reference = get(source, "reference") if isinstance(source, dict) else None
        if isinstance(reference, str) and reference.strip():
            yield reference


def _mappings(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


# ------------------------------------------------------------------------------------------------------- Compose


def read_compose(text: str, name: str, environment: Mapping[str, str]) -> Listed:
    """The images of every service and of image volumes in a Compose file. Raises `ListMalformed`.

    Services whose `pull_policy` is `build` or `never` are left out. Variables are interpolated as Compose does it.
    """
    images: list[Named] = []
    warnings: list[str] = []
    for document in documents(text, name):
        if document is None:
            continue
        services = get(document, "services") if isinstance(document, dict) else None
        if not isinstance(services, dict):
            raise ListMalformed(name, 0, "not a Compose file: it has no services")
        if get(document, "include"):
            warnings.append(f"{name}: includes other files: give these, too")
        for service, settings in services.items():
            if isinstance(settings, dict):
                for image in _of_service(settings):
                    where = f"{name}:{line_of(image)}" if line_of(image) else f"{name}: {service}"
                    images += _interpolated(image, where, environment, warnings)
                if isinstance(extended := get(settings, "extends"), dict) and extended.get("file"):
                    warnings.append(f"{name}: {service} extends {extended['file']}: give that file, too")
    return Listed(tuple(images), tuple(warnings))


def _of_service(settings: Mapping[str, Any]) -> Iterator[str]:
    if get(settings, "pull_policy") not in ("build", "never"):
        image = get(settings, "image")
        if isinstance(image, str) and image.strip():
            yield image
    for volume in _mappings(get(settings, "volumes")):
        source = get(volume, "source")
        if get(volume, "type") == "image" and isinstance(source, str):
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
        elif variable := _NAME.match(text, dollar + 1):
            made.append(_expression(variable[0], environment, unset, depth))
            position = variable.end()
        else:
            raise ValueError(f"a single $ in {text[:80]!r}; write $$ for a dollar")
    return "".join([*made, text[position:]])


def _closing(text: str, position: int) -> int:
    """The position of the brace that closes the one opened before `position`."""
    open_ = 1
    for brace in re.compile(r"\$\{|\}").finditer(text, position):
        open_ += 1 if brace[0] == "${" else -1
        if not open_:
            return brace.start()
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
    variables: dict[str, str] = {}
    for line in text.splitlines():
        name, equals, value = line.strip().removeprefix("export ").partition("=")
        name, value = name.strip(), value.strip()
        if not equals or not _NAME.fullmatch(name):
            continue
        if literal := re.match(r"'([^']*)'", value):
            variables[name] = literal[1]
            continue
        if quoted := re.match(r'"((?:[^"\\]|\\.)*)"', value):
            value = re.sub(r"\\(.)", r"\1", quoted[1])
        else:
            value = re.sub(r"(^|\s)#.*", "", value).strip()
        try:
            variables[name] = interpolate(value, {**variables, **environment})
        except ValueError:
            continue
    return {**variables, **environment}
