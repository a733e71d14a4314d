"""A `RegistryUpstream` from flat arguments: a test names those that it is about."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import fields
from typing import Any, Final, TypeVar

from mirror.aio.memo import Memo
from mirror.upstream.credentials.source import CredentialSource
from mirror.upstream.http.transport import Endpoint, Timeouts, Tls
from mirror.upstream.parameters import Clocks, Hooks, Limits
from mirror.upstream.registry import RegistryUpstream

T = TypeVar("T")

_FLAT: Final = {"connect_timeout": "connect", "answer_timeout": "answer", "read_timeout": "read"}


def registry_upstream(
    name: str,
    url: str,
    *,
    executor: Executor,
    memo: Memo,
    credentials: CredentialSource | None = None,
    clock: Callable[[], float] | None = None,
    **settings: Any,
) -> RegistryUpstream:
    """`settings` are fields of `Endpoint`, `Timeouts`, `Tls`, `Limits`, `Hooks` and `Clocks`; `clock` is `now`, too."""
    if clock is not None:
        settings = {"now": clock, "monotonic": clock, **settings}
    known = {field.name for kind in (Tls, Timeouts, Endpoint, Limits, Hooks, Clocks) for field in fields(kind)}
    if unknown := settings.keys() - known - _FLAT.keys():
        raise TypeError(f"no such settings: {unknown}")
    return RegistryUpstream(
        endpoint(name, url, **settings),
        executor=executor,
        memo=memo,
        credentials=credentials,
        limits=take(Limits, settings),
        hooks=take(Hooks, settings),
        clocks=take(Clocks, settings),
    )


def endpoint(name: str, url: str, **settings: Any) -> Endpoint:
    """`settings` are fields of `Endpoint`, `Tls` and `Timeouts`; those that are not are ignored."""
    timeouts = take(Timeouts, {_FLAT.get(key, key): value for key, value in settings.items()})
    tls = take(Tls, settings)
    return take(Endpoint, {**settings, "name": name, "url": url, "tls": tls, "timeouts": timeouts})


def take(kind: type[T], settings: dict[str, Any]) -> T:
    """The dataclass, with those of the settings that are its fields."""
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]  # it is a dataclass
    return kind(**{name: value for name, value in settings.items() if name in names})
