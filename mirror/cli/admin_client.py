"""Requests to the running mirror, over the admin API's unix socket."""

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
    """No mirror listens on the admin socket."""


class Refused(MirrorError):
    """The running mirror refused the request; `code` is an error code of docs/errors.md."""

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
    """Send one request, with `body` as JSON, and wait up to `patience` seconds for the answer (None: forever).

    Raises `NotRunning`, `Refused`, and `MirrorError` with the reason.
    """
    address = loaded.admin_address
    if not address:
        raise ConfigError(["admin.listen is empty: this mirror has no admin API"])
    content = None if body is None else json.dumps(body, ensure_ascii=False).encode()
    connection = _Connection(Path(address.removeprefix("unix:")), patience)
    try:
        connection.request(method, target, body=content)
        reply = connection.getresponse()
        answer = json.loads(reply.read())
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise NotRunning(f"no mirror is running at {address}") from error
    except PermissionError as error:
        raise MirrorError(f"{address} belongs to another user: run this command as the user of the mirror") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise MirrorError(f"{address}: no valid answer: {error or type(error).__name__}") from error
    finally:
        connection.close()
    if reply.status >= 400:
        details = answer["errors"][0]
        raise Refused(str(details["message"]), str(details["code"]))
    return dict(answer)


def ask_if_running(
    loaded: settings.Config,
    method: str,
    target: str,
    *,
    body: Mapping[str, Any] | None = None,
    patience: float | None = _PATIENCE,
) -> dict[str, Any] | None:
    """Like `ask`, but None if no mirror runs or it has no admin API."""
    if not loaded.admin_address:
        return None
    try:
        return ask(loaded, method, target, body=body, patience=patience)
    except NotRunning:
        return None


class _Connection(http.client.HTTPConnection):
    """An HTTP connection to a unix socket."""

    def __init__(self, path: Path, patience: float | None) -> None:
        super().__init__("localhost", timeout=patience)
        self._path = path
        self._patience = patience

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock: socket.socket = connect_unix(self._path, timeout=_PATIENCE)
        self.sock.settimeout(self._patience)
