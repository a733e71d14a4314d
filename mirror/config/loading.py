"""Loads the settings from a file and the environment, checks them, and reports every mistake at once.

TOML ──> environment over it ──> check of each setting ──> command line ──> secrets read from their files
     ──> checks of several settings together, and of the files that they name
"""

from __future__ import annotations

import copy
import os
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import (
    BaseModel,
    SecretStr,
    ValidationError,
)
from pydantic.fields import FieldInfo
from pydantic_settings import EnvSettingsSource

from mirror.config import values
from mirror.config.checks import cross_check
from mirror.config.files import is_absent
from mirror.config.settings import Config
from mirror.config.tables.bucket_settings import SECRETS, BucketSettings, check_customer_key, check_proxy
from mirror.config.tables.event_settings import EventEndpointSettings
from mirror.config.tables.upstream_settings import ReachSettings
from mirror.config.wording import in_plain_words, meant_setting
from mirror.errors import ConfigError, reason_of
from mirror.upstream.credentials.secret_files import secret_in

#: A setting, and how mistakes end that say it is missing.
_IF_MISSING: Final = (
    ("store.bucket", "there is no bucket: set store.bucket"),
    ("store.bucket", "needs store.bucket"),
    ("bucket.endpoint", "for another store, set endpoint"),
    ("cluster.members", "there is no cluster: set cluster.members"),
    ("cluster.address", "must be set: the address of this replica, as the other replicas reach it"),
)


def load(path: Path | None, overrides: dict[str, Any] | None = None, *, without_htpasswd: bool = False) -> Config:
    """Reads and checks all settings. Raises `ConfigError` with every mistake; no message shows a secret.

    `overrides` are the settings of the command line, by section. They take precedence over file and environment. With
    `without_htpasswd` the htpasswd file need not exist.
    """
    content: dict[str, Any] = {}
    if path is not None:
        try:
            content = tomllib.loads(path.read_text())
        except OSError as error:
            raise ConfigError([f"{path}: {reason_of(error)}"]) from error
        except tomllib.TOMLDecodeError as error:
            # `capacity = 5GB` is neither a number nor a text
            quotes = "; sizes, durations and texts are in quotes" if _is_about_a_value(str(error)) else ""
            raise ConfigError([f"{path}: not TOML: {error}{quotes}"]) from error
        except UnicodeDecodeError as error:
            raise ConfigError([f"{path}: not TOML: not UTF-8 at byte {error.start}"]) from error
    config, mistakes = _validated(_with_environment(content))
    mistakes += _unknown_in_environment()
    for section, wanted in (overrides or {}).items():
        present = {name: value for name, value in wanted.items() if value is not None}
        if present:
            config, more = _override(config, section, present)
            mistakes += more
    config, more = _with_secrets(config)
    mistakes += more
    mistakes += [mistake for mistake in cross_check(config) if not _follows(mistake, mistakes)]
    if without_htpasswd and config.access.htpasswd is not None and is_absent(config.access.htpasswd):
        mistakes = [mistake for mistake in mistakes if not mistake.startswith("access.htpasswd: ")]
    if mistakes:
        raise ConfigError(mistakes)
    return config


def _is_about_a_value(message: str) -> bool:
    return message.startswith(("Invalid value", "Expected newline or end of document after a statement"))


def _follows(mistake: str, others: Sequence[str]) -> bool:
    """True if a setting seems to be missing only because its value is not valid, which is reported already."""
    return any(
        mistake.endswith(end) and any(other.startswith((f"{setting}: ", f"{setting}[")) for other in others)
        for setting, end in _IF_MISSING
    )


class _Environment(EnvSettingsSource):
    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        """The value parsed as JSON, or as it is written if it is not JSON: then the setting's own check accepts or
        refuses it.
        """
        try:
            return super().decode_complex_value(field_name, field, value)
        except ValueError:
            return value


def _with_environment(content: Mapping[str, Any]) -> dict[str, Any]:
    """The file's settings, replaced by those of the environment if both are given."""
    merged = dict(content)
    for name, value in _Environment(Config)().items():
        below = merged.get(name)
        merged[name] = {**below, **value} if isinstance(value, dict) and isinstance(below, dict) else value
    return merged


def _unknown_in_environment() -> list[str]:
    """A mistake for each variable whose first word is no section and no setting; pydantic ignores such variables."""
    prefix = str(Config.model_config["env_prefix"])
    names = [name for name in os.environ if name.upper().startswith(prefix)]
    known = Config.model_fields
    return [f"{name}: no such setting" for name in sorted(names) if name.lower().split("__")[1] not in known]


def _validated(content: dict[str, Any]) -> tuple[Config, list[str]]:
    """The settings as far as they are valid, and every mistake in them.

    Wrong settings are left out and the rest is checked again: checks of several settings run only once each single
    setting is valid, and their mistakes must show in the same run. A mistake that is due to a setting that was left out
    is not reported.
    """
    content = copy.deepcopy(content)
    mistakes: list[str] = []
    left_out: set[str] = set()
    while True:
        try:
            return Config.model_validate(content), mistakes
        except ValidationError as error:
            for detail in error.errors(include_url=False, include_input=False):
                text = _mistake(detail, content=content)
                consequence = detail["type"] == "value_error" and any(
                    name in text.partition(": ")[2] for name in left_out
                )
                if not (consequence or (left_out and detail["type"] == "missing")):
                    mistakes.append(text)
            # last places first, so that earlier indexes in a list do not shift
            for where in sorted({detail["loc"] for detail in error.errors()}, key=str, reverse=True):
                left_out |= _leave_out(content, where)


def _leave_out(content: dict[str, Any], where: tuple[int | str, ...]) -> set[str]:
    """Removes the setting at one place. Returns the names of the settings that were removed."""
    match where:
        case ("upstream" | "hosted" as listed, int(number), *inner) if isinstance(content[listed], list):
            entry = content[listed][number]
            if inner and isinstance(entry, dict) and inner[0] in entry and inner[0] != "name":
                del entry[inner[0]]
                return {str(inner[0])}
            # the entry stays in the list, so that the others keep their numbers; a valid name stays, too
            name = entry.get("name") if isinstance(entry, dict) and (not inner or inner[0] != "name") else None
            content[listed][number] = {"name": name or f"left-out-{listed}-{number}.invalid"}
            return {str(key) for key in entry} if isinstance(entry, dict) else set()
        case (str(section), str(setting), *_) if isinstance(content.get(section), dict):
            gone = content[section].pop(setting, None) is not None
            return {setting} if gone else set()
        case (str(section), *_):
            gone_section = content.pop(section, None)
            return {section, *(gone_section if isinstance(gone_section, dict) else ())}
    raise AssertionError(where)


def _override(config: Config, section: str, values_by_name: dict[str, Any]) -> tuple[Config, list[str]]:
    current: BaseModel = getattr(config, section)
    try:
        changed = type(current).model_validate({**current.model_dump(), **values_by_name})
    except ValidationError as error:
        return config, [_mistake(detail, section, content={}) for detail in error.errors(include_input=False)]
    return config.model_copy(update={section: changed}), []


def _mistake(error: Any, *before: str, content: Mapping[str, Any]) -> str:
    """One line that names the setting and says what is wrong with it."""
    place = (*before, *error["loc"])
    where = ""
    for part in place:
        where += f"[{part + 1}]" if isinstance(part, int) else f".{part}" if where else str(part)
    meant = meant_setting(Config, place) if error["type"] == "extra_forbidden" else ""
    return f"{where or 'configuration'}: {in_plain_words(error, place, content)}{meant}"


def _with_secrets(config: Config) -> tuple[Config, list[str]]:
    """Replaces every secret that is given as `…_file` by the content of that file. Returns the mistakes, too."""
    mistakes: list[str] = []
    index = config.index
    if index.url_file is not None:
        if index.url.get_secret_value():
            mistakes.append("index: url and url_file exclude each other")
        text = _read_secret("index.url_file", index.url_file, mistakes)
        index = index.model_copy(update={"url": SecretStr(text)})
    upstreams = []
    for number, upstream in enumerate(config.upstream, 1):
        where = f"upstream[{number}]"
        endpoints = [
            _with_reach_secrets(endpoint, f"{where}.endpoints[{position}]", mistakes)
            for position, endpoint in enumerate(upstream.endpoints, 1)
        ]
        read = _with_reach_secrets(upstream, where, mistakes)
        upstreams.append(read.model_copy(update={"endpoints": endpoints}))
    tokens = []
    for number, token in enumerate(config.access.token, 1):
        if token.token_file is not None:
            text = _read_secret(f"access.token[{number}].token_file", token.token_file, mistakes)
            token = token.model_copy(update={"token": SecretStr(text)})
        tokens.append(token)
    access = config.access.model_copy(update={"token": tokens})
    reached = [_with_url(each, number, mistakes) for number, each in enumerate(config.events.endpoint, 1)]
    events = config.events.model_copy(update={"endpoint": reached})
    bucket = _with_bucket_secrets(config.bucket, mistakes)
    whole = {"index": index, "upstream": upstreams, "access": access, "events": events, "bucket": bucket}
    return config.model_copy(update=whole), mistakes


def _with_url(endpoint: EventEndpointSettings, number: int, mistakes: list[str]) -> EventEndpointSettings:
    if endpoint.url_file is None:
        return endpoint
    where = f"events.endpoint[{number}].url_file"
    text = _read_secret(where, endpoint.url_file, mistakes)
    try:
        values.event_url(text)
    except ValueError:
        if text:
            mistakes.append(f"{where}: {endpoint.url_file} contains no http or https URL")
    return endpoint.model_copy(update={"url": SecretStr(text)})


def _with_bucket_secrets(bucket: BucketSettings, mistakes: list[str]) -> BucketSettings:
    checks: dict[str, Callable[[str], object]] = {"customer_key": check_customer_key, "proxy": check_proxy}
    for secret in SECRETS:
        file: Path | None = getattr(bucket, f"{secret}_file")
        if file is None:
            continue
        if getattr(bucket, secret) is not None:
            mistakes.append(f"bucket.{secret}: {secret} and {secret}_file exclude each other")
            continue
        where = f"bucket.{secret}_file"
        text = _read_secret(where, file, mistakes)
        try:
            if text and secret in checks:
                checks[secret](text)
        except ValueError as error:
            mistakes.append(f"{where}: {file}: {error}")
        bucket = bucket.model_copy(update={secret: SecretStr(text)})
    return bucket


R = TypeVar("R", bound=ReachSettings)


def _with_reach_secrets(reach: R, where: str, mistakes: list[str]) -> R:
    for secret in ("password", "client_secret", "proxy"):
        file: Path | None = getattr(reach, f"{secret}_file")
        if file is not None:
            text = _read_secret(f"{where}.{secret}_file", file, mistakes)
            if secret == "proxy" and text:  # noqa: S105 - the name of a setting
                try:
                    values.proxy(text)
                except ValueError:
                    mistakes.append(f"{where}.proxy_file: {file} does not contain http://host:port")
                    continue
            reach = reach.model_copy(update={secret: SecretStr(text)})
    return reach


def _read_secret(setting: str, path: Path, mistakes: list[str]) -> str:
    try:
        return secret_in(path.read_bytes())
    except (OSError, ValueError) as error:
        mistakes.append(f"{setting}: {path}: {reason_of(error)}")
        return ""
