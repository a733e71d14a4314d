"""A `RegistryUpstream` from flat arguments: a test names those that it is about."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import fields
from typing import Any, Final, TypeVar

from mirror.aio.memo import Memo
from mirror.upstream.credentials.source import CredentialSource
from mirror.upstream.http.transport import Timeouts, Tls
from mirror.upstream.parameters import Clocks, Hooks, Limits, Reach
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
    """`settings` are fields of `Reach`, `Timeouts`, `Tls`, `Limits`, `Hooks` and `Clocks`; `clock` is `now`, too."""
    if clock is not None:
        settings = {"now": clock, "monotonic": clock, **settings}
    tls, timeouts = take(Tls, settings), take_timeouts(settings)
    reach = take(Reach, {**settings, "tls": tls, "timeouts": timeouts})
    known = {field.name for kind in (Tls, Timeouts, Reach, Limits, Hooks, Clocks) for field in fields(kind)}
    if unknown := settings.keys() - known - _FLAT.keys():
        raise TypeError(f"no such settings: {unknown}")
    return RegistryUpstream(
        name,
        url,
        executor=executor,
        memo=memo,
        credentials=credentials,
        reach=reach,
        limits=take(Limits, settings),
        hooks=take(Hooks, settings),
        clocks=take(Clocks, settings),
    )


def take_timeouts(settings: dict[str, Any]) -> Timeouts:
    """The `Timeouts` in flat arguments such as `read_timeout`."""
    return take(Timeouts, {_FLAT.get(name, name): value for name, value in settings.items()})


def take(kind: type[T], settings: dict[str, Any]) -> T:
    """The dataclass, with those of the settings that are its fields."""
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]  # it is a dataclass
    return kind(**{name: value for name, value in settings.items() if name in names})
