"""`jobs`: what the running mirror was asked to do, over its admin API."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.table import Table

from mirror import config as settings
from mirror.cli.base import ConfigFile, application, table_console
from mirror.errors import ConfigError, MirrorError
from mirror.listen import connect_unix
from mirror.policy.sizes import format_size

__all__ = ["jobs"]

#: Seconds until an answer.
_PATIENCE = 30.0


@application.command()
def jobs(
    job: Annotated[str | None, typer.Argument(metavar="[ID]", help="Only this job, with all that is known.")] = None,
    config: ConfigFile = None,
    cancel: Annotated[bool, typer.Option("--cancel", help="End this job.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON instead of a table.")] = False,
) -> None:
    """List the jobs of the running mirror, show one, or cancel it."""
    loaded = settings.load(config)
    if cancel and job is None:
        raise ConfigError(["--cancel: which job? Give its ID"])
    if job is not None:
        answer = _ask(loaded, "DELETE" if cancel else "GET", f"/admin/v1/jobs/{quote(job, safe='')}")
        if cancel and not as_json:
            print(f"job {job}: " + ("is being cancelled" if answer.get("cancelling") else f"is {answer['state']}"))
            return
        print(json.dumps(answer, indent=1))
        return
    answer = _ask(loaded, "GET", "/admin/v1/jobs")
    print(json.dumps(answer, indent=1)) if as_json else _show(answer["jobs"])


def _show(found: list[dict[str, Any]]) -> None:
    table = Table("job", "kind", "what", "state", "created", "progress")
    for job in found:
        arguments = job.get("arguments", {})
        images, more = arguments.get("images", []), arguments.get("more", 0)
        what = arguments.get("rule") or (
            f"{images[0]} and {len(images) - 1 + more} more" if len(images) > 1 else "".join(images)
        )
        table.add_row(job["id"], job["kind"], what, job["state"], job["created"] or "", _progress(job))
    if found:
        table_console().print(table)
    else:
        print("no jobs")


def _progress(job: dict[str, Any]) -> str:
    progress, result = job.get("progress"), job.get("result", {})
    if "error" in result:
        return str(result["error"])
    return f"{format_size(progress['received'])} of {format_size(progress['size'])}" if progress else ""


def _ask(loaded: settings.Config, method: str, target: str) -> dict[str, Any]:
    """One request to the running mirror. Raises `MirrorError` that says what is wrong, or that none runs."""
    address = loaded.admin_address
    if not address:
        raise ConfigError(["admin.listen is empty: this mirror has no admin API"])
    connection = _Connection(address)
    try:
        connection.request(method, target)
        reply = connection.getresponse()
        body = json.loads(reply.read())
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise MirrorError(f"no mirror is running: nobody listens at {address}") from error
    except PermissionError as error:
        raise MirrorError(f"{address} is another user's: run this as the user that the mirror runs as") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise MirrorError(f"{address} does not answer as a mirror does: {error or type(error).__name__}") from error
    finally:
        connection.close()
    if reply.status >= 400:
        raise MirrorError(str(body["errors"][0]["message"]))
    return dict(body)


class _Connection(http.client.HTTPConnection):
    """To `unix:/path` or `host:port`."""

    def __init__(self, address: str) -> None:
        self._path = Path(address.removeprefix("unix:")) if address.startswith("unix:") else None
        host, _, port = ("localhost", "", "80") if self._path else address.rpartition(":")
        super().__init__(host.strip("[]"), int(port), timeout=_PATIENCE)

    def connect(self) -> None:
        """Likewise."""
        if self._path is None:
            super().connect()
        else:
            self.sock: socket.socket = connect_unix(self._path, timeout=_PATIENCE)
