"""Asking the mirror that runs, over the admin API's unix socket."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mirror import config as settings
from mirror.errors import ConfigError, MirrorError
from mirror.policy.image_names import Image, name_of
from mirror.process.listeners import connect_unix

#: Seconds until an answer.
_PATIENCE = 30.0


class NotRunning(MirrorError):
    """Nobody listens."""


class Refused(MirrorError):
    """The running mirror has not done it; `code` is that of docs/errors.md."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


def target_of(collection: str, image: Image) -> str:
    """The path of one image in a collection of the admin API."""
    return f"/admin/v1/{collection}/{quote(name_of(image.repo, image.reference), safe='/:@')}"


def ask(
    loaded: settings.Config,
    method: str,
    target: str,
    *,
    body: Mapping[str, Any] | None = None,
    patience: float | None = _PATIENCE,
) -> dict[str, Any]:
    """One request to the running mirror, the body as JSON; `patience` in seconds until it answers.

    Raises `MirrorError` that says what is wrong, `NotRunning`, `Refused`.
    """
    address = loaded.admin_address
    if not address:
        raise ConfigError(["admin.listen is empty: this mirror has no admin API"])
    sent = None if body is None else json.dumps(body, ensure_ascii=False).encode()
    connection = _Connection(Path(address.removeprefix("unix:")), patience)
    try:
        connection.request(method, target, body=sent)
        reply = connection.getresponse()
        told = json.loads(reply.read())
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise NotRunning(f"no mirror is running: nobody listens at {address}") from error
    except PermissionError as error:
        raise MirrorError(f"{address} is another user's: run this as the user that the mirror runs as") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise MirrorError(f"{address} does not answer as a mirror does: {error or type(error).__name__}") from error
    finally:
        connection.close()
    if reply.status >= 400:
        why = told["errors"][0]
        raise Refused(str(why["message"]), str(why["code"]))
    return dict(told)


def ask_if_running(
    loaded: settings.Config,
    method: str,
    target: str,
    *,
    body: Mapping[str, Any] | None = None,
    patience: float | None = _PATIENCE,
) -> dict[str, Any] | None:
    """The same; None: no mirror runs, or it has no admin API. Raises `MirrorError`."""
    if not loaded.admin_address:
        return None
    try:
        return ask(loaded, method, target, body=body, patience=patience)
    except NotRunning:
        return None


class _Connection(http.client.HTTPConnection):
    """To a unix socket."""

    def __init__(self, path: Path, patience: float | None) -> None:
        super().__init__("localhost", timeout=patience)
        self._path = path
        self._patience = patience

    def connect(self) -> None:
        """Likewise."""
        self.sock: socket.socket = connect_unix(self._path, timeout=_PATIENCE)
        self.sock.settimeout(self._patience)
