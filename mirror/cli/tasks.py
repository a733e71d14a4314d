"""`jobs`: what the running mirror was asked to do, over its admin API."""

from __future__ import annotations

import json
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.table import Table

from mirror import config as settings
from mirror.cli.base import ConfigFile, application, table_console
from mirror.cli.running import ask
from mirror.errors import ConfigError
from mirror.policy.sizes import format_size

__all__ = ["jobs"]


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
        answer = ask(loaded, "DELETE" if cancel else "GET", f"/admin/v1/jobs/{quote(job, safe='')}")
        if cancel and not as_json:
            print(f"job {job}: " + ("is being cancelled" if answer.get("cancelling") else f"is {answer['state']}"))
            return
        print(json.dumps(answer, indent=1))
        return
    answer = ask(loaded, "GET", "/admin/v1/jobs")
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
