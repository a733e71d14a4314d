"""`account` and `token`: accounts of people in the htpasswd file, and robots. A running mirror sees every change at its
next request.
"""

from __future__ import annotations

import getpass
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from mirror import config as settings
from mirror.access.accounts import accounts, check_account_name, check_password, remove_account, set_account
from mirror.access.robots import ROBOTS, USES, Grant, Robot, create_robot, last_uses, read_robot, revoke_robot
from mirror.cli.audit_command import audited, cli_caller
from mirror.cli.base import ConfigFile, JsonOption, TextTable, application, counted, format_minute, load, say, say_json
from mirror.cli.store_checks import check_owner, check_there, store_ids
from mirror.config import values
from mirror.errors import ConfigError, MirrorError
from mirror.policy.access_rules import Action
from mirror.policy.pins import parse_until
from mirror.policy.routing import RoutingTable
from mirror.ports import CheckedRecords
from mirror.values.timestamps import moment


class AccountAction(StrEnum):
    """What `account` does."""

    ADD = "add"
    LIST = "list"
    REMOVE = "remove"


class TokenAction(StrEnum):
    """What `token` does."""

    CREATE = "create"
    LIST = "list"
    REVOKE = "revoke"


@application.command()
def account(
    action: Annotated[AccountAction, typer.Argument(metavar="ACTION", help="add, list or remove.")],
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="The account.")] = None,
    config: ConfigFile = None,
    as_json: JsonOption = False,
) -> None:
    """Add, list or remove accounts for `docker login`. The password is asked for, or read from standard input."""
    loaded = settings.load(config, without_htpasswd=True)
    path = _accounts_file(loaded)
    if action is AccountAction.LIST:
        names = accounts(path)
        of = {one: sorted(group for group, members in loaded.access.groups.items() if one in members) for one in names}
        say_json([{"name": one, "groups": of[one]} for one in names]) if as_json else _print_accounts(of)
        return
    if name is None:
        raise ConfigError([f"{action} needs the name of an account"])
    if action is AccountAction.REMOVE:
        with audited(loaded, "account-remove", account=name):
            if not remove_account(path, name):
                raise MirrorError(f"there is no account {name}")
        say(f"{name}: removed from {path}")
        return
    with _arguments():
        check_account_name(name)
        password = check_password(_ask_password(name))
    with audited(loaded, "account-add", account=name):
        is_new = set_account(path, name, password, owner=store_ids(loaded))
    say(f"{name}: {'added to' if is_new else 'password changed in'} {path}")
    if loaded.access.htpasswd is None:
        say(f'Set this, and reload the mirror (SIGHUP):\n\n[access]\nhtpasswd = "{path}"')


def _accounts_file(loaded: settings.Config) -> Path:
    """The file that is configured, or else one beside the store."""
    if loaded.access.htpasswd is not None:
        return loaded.access.htpasswd
    check_there(loaded)
    return loaded.store.root.absolute() / "htpasswd"


def _ask_password(name: str) -> str:
    """The password, from the terminal, where it is typed twice, or the whole of standard input. Raises `ValueError`."""
    if not sys.stdin.isatty():
        return sys.stdin.read().removesuffix("\n").removesuffix("\r")
    password = getpass.getpass(f"Password for {name}: ")
    if getpass.getpass("Once more: ") != password:
        raise ValueError("the passwords differ")
    return password


def _print_accounts(groups: dict[str, list[str]]) -> None:
    table = TextTable("account", "groups")
    for name, of in groups.items():
        table.add_row(name, ", ".join(of))
    if groups:
        table.show()
    say(counted(len(groups), "account"))


@application.command()
def token(
    action: Annotated[TokenAction, typer.Argument(metavar="ACTION", help="create, list or revoke.")],
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME] [PATTERN]...", help="The robot, and what --allow is about.")
    ] = None,
    config: ConfigFile = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ACTIONS PATTERN",
            help="What it may do, and where: --allow push,pull 'corp/team/**'. Can be given several times.",
        ),
    ] = None,
    expires: Annotated[str, typer.Option(help="When it ends: 90d, a date, or never.")] = "90d",
    as_json: JsonOption = False,
) -> None:
    """Create, list or revoke tokens of robots: logins for machines that can do only what is listed."""
    loaded = load(config)
    names = [word for word in words or () if not _is_pattern(word)]
    patterns = [word for word in words or () if _is_pattern(word)]
    if action is not TokenAction.CREATE and (patterns or allow):
        raise ConfigError([f"{action} takes no --allow and no patterns"])
    if len(names) != (action is not TokenAction.LIST):
        needed = "takes no name" if action is TokenAction.LIST else "needs the name of one robot"
        raise ConfigError([f"{action} {needed}, not {' '.join(names) or 'none'}"])
    check_there(loaded)
    from mirror.app.stored_records import stored_records

    with stored_records(loaded) as stored:
        records, uses = stored.json(ROBOTS), stored.json(USES)
        match action:
            case TokenAction.CREATE:
                check_owner(loaded)
                grants = _grants(allow or [], patterns, settings.routing_table(loaded))
                _create(loaded, records, names[0], grants, expires, as_json=as_json)
            case TokenAction.REVOKE:
                check_owner(loaded)
                with audited(loaded, "token-revoke", robot=names[0]):
                    if not revoke_robot(records, uses, names[0]):
                        raise MirrorError(f"there is no robot {names[0]}")
                say(f"{names[0]}: revoked")
            case TokenAction.LIST:
                found, unread = records.look(read_robot)
                used = last_uses(uses)
                ordered = sorted(found, key=lambda robot: robot.name)
                rows = [_row(robot, used.get(robot.id), time.time()) for robot in ordered]
                say_json(rows) if as_json else _print_robots(rows)
                if unread:
                    # after the list, so that the list is not taken for complete; such a robot cannot log in
                    raise MirrorError("\n".join(f"{record.file}: {record.why}" for record in unread))


def _is_pattern(word: str) -> bool:
    """Whether a word is a pattern of repositories; names of robots have neither a slash nor a star."""
    return "/" in word or "*" in word


def _grants(allow: Sequence[str], patterns: Sequence[str], table: RoutingTable) -> list[Grant]:
    """The entries of the list: each `--allow` with the pattern that follows it. Raises `ConfigError`."""
    if not allow:
        raise ConfigError(["create needs at least one --allow ACTIONS PATTERN"])
    if len(allow) != len(patterns):
        raise ConfigError(
            [f"each --allow needs one pattern: {len(allow)} × --allow, {counted(len(patterns), 'pattern')}"]
        )
    known = {action.value for action in Action if action is not Action.ADMIN} | {"write"}
    mistakes, grants = [], []
    for text, pattern in zip(allow, patterns, strict=True):
        names = tuple(text.split(","))
        mistakes += [f"--allow: {name!r} is none of {', '.join(sorted(known))}" for name in names if name not in known]
        try:
            values.route_pattern(pattern)
        except ValueError as error:
            mistakes.append(f"--allow: {error}")
        registry = pattern.partition("/")[0]
        if members := table.members(registry):
            mistakes.append(f"--allow: {registry} is virtual; allow it for its members ({', '.join(members)})")
        grants.append(Grant(names, (pattern,)))
    if mistakes:
        raise ConfigError(mistakes)
    return grants


def _create(
    loaded: settings.Config, records: CheckedRecords, name: str, grants: list[Grant], expires: str, *, as_json: bool
) -> None:
    now = time.time()
    with _arguments():
        end = None if expires == "never" else parse_until(expires, now)
        with audited(loaded, "token-create", robot=name, allow=[str(grant) for grant in grants]):
            robot, secret = create_robot(records, name, grants, now=now, expires_at=end, by=cli_caller())
    if as_json:
        say_json({**_row(robot, None, now), "secret": secret})
        return
    until = f"until {format_minute(end)} UTC" if end else "until it is revoked"
    say(f"robot {name}, {until}: {'; '.join(map(str, grants))}")
    say(f"\n{secret}\n\nThis secret is not shown again. It is a bearer token, and the password in:")
    say(f"docker login --username {name} --password-stdin HOST")


@contextmanager
def _arguments() -> Iterator[None]:
    """Turns a `ValueError` about an argument into `ConfigError`."""
    try:
        yield
    except ValueError as error:
        raise ConfigError([str(error)]) from error


def _row(robot: Robot, used_at: float | None, now: float) -> dict[str, Any]:
    return {
        "name": robot.name,
        "id": robot.id,
        "allow": [{"actions": list(one.actions), "repositories": list(one.repositories)} for one in robot.allow],
        "created_at": moment(robot.created_at),
        "expires_at": moment(robot.expires_at),
        "expired": robot.expires_at is not None and now >= robot.expires_at,
        "refused": robot.refusal(now),
        "used_at": moment(used_at),
        "by": robot.by,
    }


def _print_robots(rows: Sequence[dict[str, Any]]) -> None:
    table = TextTable("robot", "may", "until", "last used", "created by")
    for row in rows:
        may = "\n".join(f"{','.join(one['actions'])} {' '.join(one['repositories'])}" for one in row["allow"])
        until = _minute(row["expires_at"]) or "revoked"
        if row["refused"]:
            until += " (expired)" if row["expired"] else f"\nrefused now: {row['refused']}"
        table.add_row(row["name"], may, until, _minute(row["used_at"]) or "never", row["by"])
    if rows:
        table.show()
    say(counted(len(rows), "robot"))


def _minute(text: str | None) -> str:
    """`2025-01-31 12:30`, from `2025-01-31T12:30:00Z`."""
    return "" if text is None else text[:16].replace("T", " ")
