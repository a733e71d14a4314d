"""`retention`: a round by hand, in the running mirror or, if none runs, in this process; or what it would do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlencode

import typer

from mirror import config as settings
from mirror.cli.admin_client import ask_if_running
from mirror.cli.audit_command import audited, cli_caller
from mirror.cli.base import ConfigFile, JsonOption, TextTable, application, complain, counted, load, say, say_json
from mirror.cli.store_checks import check_owner, check_there
from mirror.config import routing_table
from mirror.errors import ConfigError, MirrorError
from mirror.policy.selection import Selection, select

if TYPE_CHECKING:
    from mirror.retention.retention_replies import JudgedJson, RepositoryPlanJson, RetentionRoundJson

#: Rows that the table of one repository has at most; `--json` has all.
_MOST_ROWS = 200


@application.command()
def retention(
    pattern: Annotated[
        str | None, typer.Argument(metavar="[PATTERN]", help="Only these repositories: 'corp/team/*'; without it, all.")
    ] = None,
    config: ConfigFile = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Delete nothing; list what would go and what stays, and why.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete hosted tags and images by the rules of [[hosted.retention]], as the schedule does. Exit status 1 if
    something is left alone that the rules may name.
    """
    loaded = load(config, level="warning")
    if not any(entry.retention for entry in loaded.hosted):
        raise ConfigError(["there is no [[hosted.retention]], so nothing is deleted by rules"])
    selection = _selection(loaded, pattern)
    check_there(loaded)
    if dry_run:
        plan = asyncio.run(_plan(loaded, selection))
        say_json(plan) if as_json else _print_plan(plan["repositories"])
        return
    done = _run(loaded, pattern, selection)
    say_json(done) if as_json else _print_round(done)
    if done["unread_count"]:
        raise typer.Exit(1)


def _selection(loaded: settings.Config, pattern: str | None) -> Selection | None:
    if pattern is None:
        return None
    selection = select(pattern, routing_table(loaded))
    if selection.tag is not None:
        raise ConfigError([f"{pattern}: rules decide about the tags of whole repositories; name these without a tag"])
    return selection


def _run(
    loaded: settings.Config, pattern: str | None, selection: Selection | None
) -> RetentionRoundJson | Mapping[str, Any]:
    query = f"?{urlencode({'search': pattern})}" if pattern else ""
    done = ask_if_running(loaded, "POST", f"/admin/v1/retention{query}", patience=None)
    if done is not None:
        return done
    check_owner(loaded)
    with audited(loaded, "retention") as about:
        here = asyncio.run(_run_here(loaded, selection))
        about |= {"tags": here["tags"], "manifests": here["manifests"], "complete": here["complete"]}
    return here


async def _run_here(loaded: settings.Config, selection: Selection | None) -> RetentionRoundJson:
    from mirror.app.hosting import disk_parts
    from mirror.app.retaining import open_retention
    from mirror.app.storage import open_storage
    from mirror.retention.retention_replies import retention_round_json
    from mirror.retention.retention_schedule import RoundWanted

    async with open_storage(loaded) as storage:
        rounds = open_retention(loaded, storage, disk_parts(loaded, storage), time.time)
        report = await rounds.run(RoundWanted(cli_caller(), selection.has if selection else None))
    if report is None:
        raise MirrorError("a round of retention is running already; it is the server's, or of another command")
    return retention_round_json(report)


async def _plan(loaded: settings.Config, selection: Selection | None) -> dict[str, list[RepositoryPlanJson]]:
    from mirror.app.hosting import disk_parts
    from mirror.app.retaining import open_retention
    from mirror.app.storage import open_storage
    from mirror.retention.retention_replies import repository_plan_json

    async with open_storage(loaded) as storage:
        rounds = open_retention(loaded, storage, disk_parts(loaded, storage), time.time)
        has = selection.has if selection else lambda repo: True
        planned = await asyncio.to_thread(lambda: [repository_plan_json(each) for each in rounds.plan(has)])
    return {"repositories": planned}


def _print_plan(planned: list[RepositoryPlanJson]) -> None:
    if not planned:
        say("no repository here is like that and has rules")
    for plan in planned:
        tags, manifests = plan["tags"], plan["manifests"]
        going = [each for each in tags if each["goes"]]
        images = [each for each in manifests if each["goes"]]
        say(
            f"{plan['repository']}: would delete {len(going)} of {counted(len(tags), 'tag')} and "
            f"{len(images)} of {counted(len(manifests), 'manifest')}"
        )
        if plan["unread"]:
            say(f"nothing goes, because something cannot be read: {plan['unread']}")
        _print_judged(tags, manifests)


def _print_judged(tags: list[JudgedJson], manifests: list[JudgedJson]) -> None:
    table = TextTable("", "tag or manifest", "why")
    # manifests with a tag are shown by it
    tagged = {each["digest"] for each in tags}
    rows = [*tags, *(each for each in manifests if each["digest"] not in tagged)]
    for each in rows[:_MOST_ROWS]:
        table.add_row("goes" if each["goes"] else "stays", each["name"], each["reason"])
    if rows:
        table.show()
    if len(rows) > _MOST_ROWS:
        say(f"{len(rows) - _MOST_ROWS} more: see --json")


def _print_round(done: Mapping[str, Any] | RetentionRoundJson) -> None:
    what = f"{counted(done['tags'], 'tag')} and {counted(done['manifests'], 'manifest')}"
    where = "1 repository" if done["repositories"] == 1 else f"{done['repositories']} repositories"
    say(f"deleted {what} from {where}; `mirror undelete` lists them")
    if done["stayed"]:
        say(f"{counted(done['stayed'], 'item')} stayed, because clients changed them meanwhile")
    for each in done["unread"]:
        complain(f"left alone, cannot be read: {each['what']}: {each['reason']}")
    if (more := done["unread_count"] - len(done["unread"])) > 0:
        complain(f"and {more} more")
