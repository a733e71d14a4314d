"""`events`: what endpoints have not taken yet. It asks the running mirror, or reads the outbox if none runs."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from enum import Enum
from typing import Annotated, Any
from urllib.parse import urlencode

import typer

from mirror import config as settings
from mirror.app.storage import open_outbox
from mirror.cli.admin_client import ask_if_running
from mirror.cli.audit_command import audited
from mirror.cli.base import ConfigFile, JsonOption, TextTable, application, complain, counted, load, say, say_json
from mirror.cli.store_checks import check_owner, check_there
from mirror.errors import ConfigError
from mirror.events.event_replies import MOST_LISTED, events_json
from mirror.index.outbox import SqliteOutbox
from mirror.store.local.layout import Layout

#: Rows that the table has at most; `--json` has all.
_MOST_ROWS = 100


class EventAction(Enum):
    """What to do."""

    LIST = "list"
    RESEND = "resend"


@application.command()
def events(
    action: Annotated[
        EventAction, typer.Argument(metavar="[ACTION]", help="list, or resend: dead events are sent again.")
    ] = EventAction.LIST,
    id: Annotated[str | None, typer.Argument(metavar="[ID]", help="With resend: the event; without it, all.")] = None,
    config: ConfigFile = None,
    endpoint: Annotated[str | None, typer.Option(help="Only events for this endpoint.")] = None,
    dead: Annotated[bool, typer.Option("--dead", help="Only dead events.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List the events that endpoints have not taken yet, with the last error; or send dead ones again. Exit status 1
    if nothing is to be sent again.
    """
    loaded = load(config, level="warning")
    names = [each.name for each in loaded.events.endpoint]
    if not names:
        raise ConfigError(["there is no [[events.endpoint]], so nothing is sent to anybody"])
    if endpoint is not None and action is EventAction.RESEND and endpoint not in names:
        raise ConfigError([f"{endpoint} is no endpoint that is configured here; they are {', '.join(names)}"])
    if id is not None and action is EventAction.LIST:
        raise ConfigError(["an event is named only with resend: mirror events resend ID"])
    if action is EventAction.RESEND:
        _resend(loaded, id, endpoint, as_json=as_json)
        return
    query = {"limit": str(MOST_LISTED), **_given(endpoint=endpoint, dead="true" if dead else None)}
    found: Mapping[str, Any] | None = ask_if_running(loaded, "GET", f"/admin/v1/events?{urlencode(query)}")
    if found is None:
        with _outbox(loaded) as outbox:
            found = events_json(outbox, names, endpoint=endpoint, dead=True if dead else None, most=MOST_LISTED)
    say_json(found) if as_json else _print(found)


def _given(**values: str | None) -> dict[str, str]:
    return {name: value for name, value in values.items() if value is not None}


def _outbox(loaded: settings.Config) -> closing[SqliteOutbox]:
    check_there(loaded)
    check_owner(loaded)
    return closing(open_outbox(loaded, Layout(loaded.store.root)))


def _resend(loaded: settings.Config, id: str | None, endpoint: str | None, *, as_json: bool) -> None:
    query = urlencode(_given(id=id, endpoint=endpoint))
    answer = ask_if_running(loaded, "POST", f"/admin/v1/events/resend{f'?{query}' if query else ''}")
    if answer is not None:
        resent = int(answer["resent"])
    else:
        with _outbox(loaded) as outbox, audited(loaded, "events", endpoint=endpoint) as about:
            resent = outbox.resend(id=id, endpoint=endpoint)
            about["events"] = resent
    if as_json:
        say_json({"resent": resent})
    elif resent:
        say(f"{counted(resent, 'event')} will be sent again")
    else:
        complain("there is no such dead event")
    if not resent:
        raise typer.Exit(1)


def _print(found: Mapping[str, Any]) -> None:
    table = TextTable("endpoint", "waiting", "dead", "lost", "oldest", "")
    for each in found["endpoints"]:
        counts = (str(each["waiting"]), str(each["dead"]), str(each["lost"]))
        table.add_row(each["endpoint"], *counts, each["oldest"] or "", "" if each["configured"] else "not configured")
    table.show()
    listed = found["events"]
    if not listed:
        return
    rows = TextTable("id", "type", "about", "endpoint", "made", "attempts", "last error")
    for event in listed[:_MOST_ROWS]:
        error = ("dead: " if event["dead"] else "") + (event["error"] or ("too old" if event["dead"] else ""))
        row = (event["id"], event["type"], event["about"], event["endpoint"], event["made"], str(event["attempts"]))
        rows.add_row(*row, error)
    rows.show()
    if len(listed) > _MOST_ROWS:
        say(f"{len(listed) - _MOST_ROWS} more: see --json")
