"""`sync`: the sync rules with their last result and next run; or one of them, now."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from mirror import config as settings
from mirror.cli.audit_command import audited
from mirror.cli.base import ConfigFile, JsonOption, TextTable, application, counted, load, say, say_json
from mirror.cli.long_running import watched
from mirror.cli.store_checks import check_owner
from mirror.errors import ConfigError
from mirror.oci.reference import Repo
from mirror.prefetch.jobs import Ended
from mirror.prefetch.progress import ProgressMeter
from mirror.prefetch.sync_rules import SyncRuleJson
from mirror.prefetch.sync_run import first_failure
from mirror.repository.protocol import Readable
from mirror.values.sizes import format_size


@application.command()
def sync(
    config: ConfigFile = None,
    now: Annotated[
        str | None, typer.Option("--now", metavar="NAME", help="Run this rule now, and wait for its end.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the sync rules with their last result and next run, or run one now. Safe beside a running server."""
    loaded = load(config)
    if now is None:
        rules = asyncio.run(_rules(loaded))
        say_json(rules) if as_json else _print_rules(rules)
        return
    titles = [rule.title for rule in loaded.sync]
    if now not in titles:
        raise ConfigError([f"--now: no sync rule {now!r}; the rules are: {', '.join(titles) or 'none'}"])
    check_owner(loaded)
    with audited(loaded, "sync", rule=now) as about:
        ended = asyncio.run(_run(loaded, now))
        result = ended.result
        about |= {"bytes": result.get("bytes"), "reason": result.get("error") or first_failure(result)}
    say_json({"rule": now, "ok": ended.ok, **ended.result}) if as_json else say(_summary(now, ended))
    if not ended.ok:
        raise typer.Exit(1)


async def _rules(loaded: settings.Config) -> list[SyncRuleJson]:
    from mirror.app.prefetching import make_sync
    from mirror.app.storage import open_storage

    def nowhere(repo: Repo) -> Readable:
        raise NotImplementedError(f"only shown, never run: {repo}")

    async with open_storage(loaded) as storage:
        return await make_sync(loaded, storage, nowhere).status()


async def _run(loaded: settings.Config, name: str) -> Ended:
    from mirror.app.building import build

    meter = ProgressMeter()
    # a user who stops the command wants no retry: the rule then waits for its next regular time
    meter.cancelled = True
    async with build(loaded, housework=False) as app:
        return await watched(name, app.sync.run_rule(name, meter, by="hand"), meter)


def _print_rules(rules: list[SyncRuleJson]) -> None:
    if not rules:
        say("the configuration has no [[sync]] rules")
        return
    table = TextTable("rule", "tags", "schedule", "state", "last run", "result", "next run")
    for rule in rules:
        table.add_row(
            rule["name"],
            rule["tags"],
            rule["schedule"],
            rule["state"],
            rule["ended"] or rule["started"] or "",
            _describe(rule["progress"] or rule["result"] or {}, rule["started_by"]),
            rule["next_run"] or "",
        )
    table.show()


def _describe(result: Mapping[str, Any], by: str | None) -> str:
    """A result, or the progress of a run, in a few words."""
    if "error" in result:
        return str(result["error"])
    if "received" in result:
        return f"{counted(result['images'], 'tag')}, {format_size(result['received'])} of {format_size(result['size'])}"
    if "tags" not in result:
        return f"by {by}" if by else ""
    words = f"{counted(result['tags'], 'tag')}, {result['new_images']} new, {format_size(result['bytes'])}"
    if result["failures"]:
        words += f", {counted(len(result['failures']), 'failure')}"
    return words + (f", {len(result['stale'])} stale" if result["stale"] else "")


def _summary(name: str, ended: Ended) -> str:
    result = ended.result
    if "error" in result:
        return f"{name}: {result['error']}"
    lines = [f"{name}: {_describe(result, None)}", *(f"  new: {image}" for image in result["new"])]
    lines += [f"  failed: {failure}" for failure in result["failures"]]
    return "\n".join(lines + [f"  upstream did not answer for the tag: {image}" for image in result["stale"]])
