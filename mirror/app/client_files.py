"""The configuration of clients, for the admin API: the plans of `mirror/nodes` for the registries of this mirror."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from mirror.config import PUBLIC, Config
from mirror.errors import ConfigError, RequestError
from mirror.nodes.plan import MirrorUrl
from mirror.nodes.preview import Offer, offered
from mirror.server.admin.replies import ClientJson, ClientsJson

#: The port that is shown if no listener has a known one.
_PORT: Final = 5000


class ClientFiles:
    """The configuration of every kind of client for one mirror."""

    def __init__(self, config: Config) -> None:
        self._registries = tuple(entry.name for entry in config.upstream)
        self._hosts = bool(config.hosted)
        self._public = tuple(str(entry["name"]) for entry in PUBLIC)
        self._scheme = "https" if config.server.tls_certificate else "http"
        self._port = next((port for address in config.server.listen if (port := _port(address))), _PORT)

    def __call__(self, mirror: str, host: str) -> ClientsJson:
        """The files and commands for all clients. Raises `RequestError`.

        `mirror` is the URL at which clients reach the mirror. If it is empty, the URL is guessed: the name in `host`,
        which is the `Host` header of the request to the admin API, with the port for pulls.
        """
        try:
            url = MirrorUrl.parse(mirror or self._guess(host))
        except ConfigError as error:
            raise RequestError(str(error).replace("MIRROR_URL", "mirror")) from error
        offers = offered(url, self._registries, self._public, hosted=self._hosts)
        return {"mirror": str(url), "clients": [_client_json(offer) for offer in offers]}

    def _guess(self, host: str) -> str:
        try:
            name = urlsplit(f"//{host}").hostname or "localhost"
        except ValueError:
            name = "localhost"
        name = f"[{name}]" if ":" in name else name
        return f"{self._scheme}://{name}:{self._port}"


def _client_json(offer: Offer) -> ClientJson:
    steps = list(dict.fromkeys(file.needs for file in offer.files if file.needs))
    return {
        "client": offer.client,
        "command": offer.command,
        "files": [{"path": file.path, "content": file.content} for file in offer.files],
        "next_steps": steps or [f"nothing has to be reloaded: {offer.seen}"],
        "notes": list(offer.notes),
    }


def _port(listen: str) -> int:
    """The port of a TCP listener; 0 for a unix socket, or if the port is chosen only when the listener is opened."""
    port = "" if listen.startswith("unix:") else listen.rpartition(":")[2]
    return int(port) if port.isdecimal() else 0
