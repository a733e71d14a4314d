"""`replicate`: the replication rules with their last result and next comparison; or one of them, now."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from mirror import config as settings
from mirror.cli.audit_command import audited
from mirror.cli.base import (
    ConfigFile,
    JsonOption,
    TextTable,
    application,
    complain,
    counted,
    load,
    say,
    say_json,
)
from mirror.cli.long_running import watched
from mirror.cli.store_checks import check_owner, check_there
from mirror.errors import ConfigError
from mirror.prefetch.progress import ProgressMeter
from mirror.replication.replication_rules import ReplicationRuleJson
from mirror.replication.rule_run import RunReport, RunWanted
from mirror.values.sizes import format_size


@application.command()
def replicate(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Compare everything by this rule now, and wait for its end.")
    ] = None,
    config: ConfigFile = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be done.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Also put tags there that were deleted there.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Repeat deletions even if they are many.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List the replication rules with their last result and next comparison, or run one now. Safe beside a running
    server.
    """
    loaded = load(config)
    if name is None:
        if dry_run or again or yes:
            raise ConfigError(["--dry-run, --again and --yes need the NAME of a rule"])
        rules = asyncio.run(_rules(loaded))
        say_json(rules) if as_json else _print_rules(rules)
        return
    names = [rule.name for rule in loaded.replication]
    if name not in names:
        raise ConfigError([f"no replication rule {name!r}; the rules are: {', '.join(names) or 'none'}"])
    check_there(loaded)
    check_owner(loaded)
    with audited(loaded, "replicate", dry_run=dry_run, rule=name) as about:
        report = asyncio.run(_run(loaded, name, RunWanted(dry_run=dry_run, again=again, yes=yes), quiet=as_json))
        result = report.to_json()
        about |= {name: result[name] or None for name in ("put", "moved", "deleted", "bytes")}
        about["reason"] = report.error or next(iter(report.failures), None)
    if as_json:
        say_json({"rule": name, "ok": report.ok, "dry_run": dry_run, **result})
    else:
        _print(name, report, dry_run=dry_run)
    if not report.ok:
        raise typer.Exit(1)


async def _rules(loaded: settings.Config) -> list[ReplicationRuleJson]:
    from mirror.app.building import build

    async with build(loaded, housework=False) as app:
        return await app.replication.replications.status()


async def _run(loaded: settings.Config, name: str, wanted: RunWanted, *, quiet: bool) -> RunReport:
    from mirror.app.building import build

    meter = ProgressMeter()
    # a user who stops the command wants no retry: the rule then waits for its next regular time
    meter.cancelled = True
    async with build(loaded, housework=False) as app:
        running = app.replication.replications.run_rule(name, meter, wanted, by="hand")
        return await watched(name, running, meter, quiet=quiet)


def _print_rules(rules: list[ReplicationRuleJson]) -> None:
    if not rules:
        say("the configuration has no [[replication]] rules")
        return
    table = TextTable("rule", "repositories", "to", "on", "state", "last run", "result", "next comparison")
    for rule in rules:
        table.add_row(
            rule["name"],
            rule["repositories"],
            rule["to"],
            rule["on"],
            rule["state"],
            rule["ended"] or rule["started"] or "",
            _describe(rule["progress"] or rule["result"] or {}),
            _next(rule),
        )
    table.show()


def _next(rule: ReplicationRuleJson) -> str:
    """When the rule runs next, in a few words."""
    if rule["state"] == "failed" and rule["on"] == "push":
        return "tried again within 5 minutes"
    return rule["next_run"] or ""


def _describe(result: Mapping[str, Any]) -> str:
    """A result, or the progress of a run, in a few words."""
    if "error" in result:
        return str(result["error"])
    if "received" in result:
        return f"{format_size(result['received'])} of {format_size(result['size'])}"
    if "put" not in result:
        return ""
    words = f"{result['put']} put, {result['moved']} moved, {result['deleted']} deleted, {format_size(result['bytes'])}"
    if result["conflict_count"]:
        words += f", {counted(result['conflict_count'], 'conflict')}"
    if result.get("held_back"):
        words += f", {counted(result['held_back'], 'deletion')} held back"
    return words + (f", {counted(result['failure_count'], 'failure')}" if result["failure_count"] else "")


def _print(name: str, report: RunReport, *, dry_run: bool) -> None:
    for step, tags in report.steps.items():
        for tag in tags if step.value in ("put", "move", "delete", "deleted there") else ():
            say(f"  {step.value}: {tag}")
    for conflict in report.conflicts:
        say(f"  left as it is there: {conflict}")
    for failure in report.failures:
        complain(f"failed: {failure}")
    if report.held_back:
        complain(
            f"{counted(report.held_back, 'deletion')} not repeated, because they are many; "
            f"look at them with --dry-run --yes, then run `mirror replicate {name} --yes`"
        )
    say(f"{name}: {'without --dry-run: ' if dry_run and not report.error else ''}{_describe(report.to_json())}")
