"""`jobs`: the jobs of the running mirror, or those on the disk if none runs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import quote

import typer

from mirror import config as settings
from mirror.cli.admin_client import ask_if_running
from mirror.cli.audit_command import audited
from mirror.cli.base import ConfigFile, JsonOption, TextTable, application, load, say, say_json
from mirror.cli.store_checks import check_owner, check_there
from mirror.errors import ConfigError
from mirror.prefetch.job_record import JobJson
from mirror.values.sizes import format_size


@application.command()
def jobs(
    job: Annotated[str | None, typer.Argument(metavar="[ID]", help="Show only this job, in full.")] = None,
    config: ConfigFile = None,
    cancel: Annotated[bool, typer.Option("--cancel", help="Cancel this job.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List the jobs of the mirror, show one of them, or cancel it."""
    loaded = load(config)
    if cancel and job is None:
        raise ConfigError(["--cancel needs the ID of a job"])
    if job is not None:
        answer = _get_or_cancel(loaded, job, cancel)
        if cancel and not as_json:
            say(f"job {job}: " + ("is being cancelled" if answer.get("cancelling") else f"is {answer['state']}"))
        else:
            say_json(answer)
        return
    listed = ask_if_running(loaded, "GET", "/admin/v1/jobs")
    if listed is None:
        listed = {"jobs": asyncio.run(_all_on_disk(loaded))}
    say_json(listed) if as_json else _print_jobs(listed["jobs"])


def _get_or_cancel(loaded: settings.Config, job: str, cancel: bool) -> Mapping[str, Any]:
    answer = ask_if_running(loaded, "DELETE" if cancel else "GET", f"/admin/v1/jobs/{quote(job, safe='')}")
    return asyncio.run(_on_disk(loaded, job, cancel)) if answer is None else answer


async def _on_disk(loaded: settings.Config, job: str, cancel: bool) -> JobJson:
    from mirror.app.prefetching import make_jobs
    from mirror.app.storage import open_storage

    # this also records the end of a job whose process has ended
    check_there(loaded)
    check_owner(loaded)
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
    check_owner(loaded)
    async with open_storage(loaded) as storage:
        return await make_jobs(storage).all()


def _print_jobs(jobs: list[dict[str, Any]]) -> None:
    table = TextTable("job", "kind", "what", "state", "created", "progress")
    for job in jobs:
        arguments = job.get("arguments", {})
        images, more = arguments.get("images", []), arguments.get("more", 0)
        what = arguments.get("rule") or (
            f"{images[0]} and {len(images) - 1 + more} more" if len(images) > 1 else "".join(images)
        )
        table.add_row(job["id"], job["kind"], what, job["state"], job["created"] or "", _progress(job))
    if jobs:
        table.show()
    else:
        say("no jobs")


def _progress(job: dict[str, Any]) -> str:
    progress, result = job.get("progress"), job.get("result", {})
    if trouble := result.get("error") or result.get("first_failure"):
        return str(trouble)
    return f"{format_size(progress['received'])} of {format_size(progress['size'])}" if progress else ""
