"""`jobs`: what a mirror was asked to do. The one that runs is asked; where none does, its disk tells."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import quote

import typer

from mirror import config as settings
from mirror import telemetry
from mirror.cli.admin_client import ask_if_running
from mirror.cli.audit_command import audited
from mirror.cli.base import ConfigFile, TextTable, application, say, say_json
from mirror.cli.long_running import check_owner, check_there
from mirror.errors import ConfigError
from mirror.prefetch.job_record import JobJson
from mirror.values.sizes import format_size


@application.command()
def jobs(
    job: Annotated[str | None, typer.Argument(metavar="[ID]", help="Only this job, with all that is known.")] = None,
    config: ConfigFile = None,
    cancel: Annotated[bool, typer.Option("--cancel", help="End this job.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON instead of a table.")] = False,
) -> None:
    """List the jobs of the mirror, show one, or cancel it; also where no mirror runs."""
    loaded = settings.load(config)
    telemetry.set_up_logging("error")
    if cancel and job is None:
        raise ConfigError(["--cancel: which job? Give its ID"])
    if job is not None:
        one = _one(loaded, job, cancel)
        if cancel and not as_json:
            say(f"job {job}: " + ("is being cancelled" if one.get("cancelling") else f"is {one['state']}"))
            return
        say_json(one)
        return
    answer = ask_if_running(loaded, "GET", "/admin/v1/jobs")
    if answer is None:
        answer = {"jobs": asyncio.run(_all_on_disk(loaded))}
    say_json(answer) if as_json else _show(answer["jobs"])


def _one(loaded: settings.Config, job: str, cancel: bool) -> Mapping[str, Any]:
    """Raises `MirrorError`."""
    told = ask_if_running(loaded, "DELETE" if cancel else "GET", f"/admin/v1/jobs/{quote(job, safe='')}")
    return asyncio.run(_one_on_disk(loaded, job, cancel)) if told is None else told


async def _one_on_disk(loaded: settings.Config, job: str, cancel: bool) -> JobJson:
    from mirror.app.prefetching import make_jobs
    from mirror.app.storage import open_storage

    # that a job is over, because its process is, is written down as well
    check_there(loaded)
    check_owner(loaded, "leaves")
    async with open_storage(loaded) as storage:
        jobs = make_jobs(storage)
        if not cancel:
            return await jobs.get(job)
        with audited(loaded, "cancel", job=job[:80]):
            return await jobs.cancel(job)


async def _all_on_disk(loaded: settings.Config) -> list[JobJson]:
    from mirror.app.prefetching import make_jobs
    from mirror.app.storage import open_storage

    check_there(loaded)
    check_owner(loaded, "leaves")
    async with open_storage(loaded) as storage:
        return await make_jobs(storage).all()


def _show(found: list[dict[str, Any]]) -> None:
    table = TextTable("job", "kind", "what", "state", "created", "progress")
    for job in found:
        arguments = job.get("arguments", {})
        images, more = arguments.get("images", []), arguments.get("more", 0)
        what = arguments.get("rule") or (
            f"{images[0]} and {len(images) - 1 + more} more" if len(images) > 1 else "".join(images)
        )
        table.add_row(job["id"], job["kind"], what, job["state"], job["created"] or "", _progress(job))
    if found:
        table.show()
    else:
        say("no jobs")


def _progress(job: dict[str, Any]) -> str:
    progress, result = job.get("progress"), job.get("result", {})
    if trouble := result.get("error") or result.get("first_failure"):
        return str(trouble)
    return f"{format_size(progress['received'])} of {format_size(progress['size'])}" if progress else ""
