"""`configure`: makes the container clients of this machine pull through the mirror."""

from __future__ import annotations

import ssl
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from mirror.cli.base import application, say
from mirror.config import PUBLIC
from mirror.errors import ConfigError, MirrorError, RequestError, reason_of
from mirror.nodes.clients import CLIENTS
from mirror.nodes.disk import NodeFiles
from mirror.nodes.journal import Difference, Done, Journal, needed
from mirror.nodes.plan import Client, ClientLogin, FilePlan, MirrorUrl, Wanted
from mirror.oci.reference import check_registry

MirrorArgument = Annotated[str | None, typer.Argument(metavar="MIRROR_URL", help="http://mirror.internal:5000")]
RootOption = Annotated[Path, typer.Option(help="Work below this folder: an image, a chroot, the host's mount.")]
AuthorityOption = Annotated[
    Path | None, typer.Option("--ca-file", help="PEM file of the authority that issued the mirror's certificate.")
]
UserOption = Annotated[str | None, typer.Option(help="Log in at the mirror as this user.")]
PasswordOption = Annotated[Path | None, typer.Option(help="File with the password of that user.")]


@application.command()
def configure(
    client: Annotated[str, typer.Argument(help=", ".join(CLIENTS))],
    mirror_url: MirrorArgument = None,
    registry: Annotated[
        list[str] | None,
        typer.Option(help="A registry to pull through the mirror; without it, all. May be repeated."),
    ] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Make the changes; without it, only show them.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would change (the default).")] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Revert the changes; with --dry-run, only show them.")] = False,
    hosted: Annotated[
        bool, typer.Option("--hosted", help="Also images that have the mirror's own name, as hosted ones have.")
    ] = False,
    virtual: Annotated[
        str | None, typer.Option(help="Send the pulls of these registries to this virtual registry of the mirror.")
    ] = None,
    root: RootOption = Path("/"),
    ca_file: AuthorityOption = None,
    username: UserOption = None,
    password_file: PasswordOption = None,
    no_fallback: Annotated[
        bool, typer.Option("--no-fallback", help="Forbid the client to ask the registry itself if the mirror fails.")
    ] = False,
) -> None:
    """Make a container client of this machine pull through the mirror. Restarts nothing."""
    kind = _client(client)
    if dry_run and apply:
        raise ConfigError(["--dry-run and --apply exclude each other"])
    if not root.is_dir():
        raise ConfigError([f"--root: {root} is not a folder"])
    journal = Journal(NodeFiles(root), kind)
    if undo:
        _undo(journal, dry_run)
        return
    if mirror_url is None:
        raise ConfigError(["MIRROR_URL is missing: the URL at which clients reach the mirror"])
    mirror = MirrorUrl.parse(mirror_url)
    wanted = Wanted(
        mirror,
        _registries(registry or []),
        tuple(str(entry["name"]) for entry in PUBLIC),
        read_authority(ca_file, mirror),
        read_account(username, password_file),
        fallback=not no_fallback,
        own_name=hosted,
        virtual=_virtual(virtual),
    )
    plan = kind.plan(journal, wanted)
    plan = replace(plan, notes=(*plan.notes, *journal.left_unchanged(plan)))
    if wanted.account and mirror.is_plain and not mirror.is_loopback:
        plan = replace(plan, notes=(*plan.notes, "the password crosses the network unencrypted: http:// has no TLS"))
    _carry_out(journal, plan) if apply and not plan.conflicts else _show(journal, plan)


def _show(journal: Journal, plan: FilePlan) -> None:
    differences = journal.differences(plan)
    _print_differences(differences)
    _print_notes(plan)
    if plan.conflicts:
        raise MirrorError("\n  ".join(["nothing was changed, because:", *plan.conflicts]))
    say("nothing was changed; --apply makes the changes" if differences else "nothing to change")
    _print_needs(differences, plan, "then")


def _carry_out(journal: Journal, plan: FilePlan) -> None:
    done = journal.apply(plan, time.time())
    _print_done(done)
    _print_notes(plan)
    if not done:
        say("nothing to change")
    _print_needs([change.difference for change in done], plan, "now")


def _undo(journal: Journal, dry_run: bool) -> None:
    if dry_run:
        differences = journal.undoing()
        _print_differences(differences)
        say("nothing was changed" if differences else "nothing to undo")
        return
    done = journal.undo()
    _print_done(done)
    for action in needed([change.difference for change in done]):
        say(f"now: {action}")
    if not done:
        say("nothing to undo")


def _print_differences(differences: Sequence[Difference]) -> None:
    for difference in differences:
        say(difference.unified() or f"{difference.path}: only the line ends change")


def _print_done(done: Sequence[Done]) -> None:
    for change in done:
        path, before, after = change.difference.path, change.difference.before, change.difference.after
        what = "removed" if after is None else "written" if before is None else "changed"
        say(f"{path}: {what}" + (f"; backup: {change.backup}" if change.backup else ""))


def _print_notes(plan: FilePlan) -> None:
    for note in plan.notes:
        say(f"note: {note}")


def _print_needs(differences: Sequence[Difference], plan: FilePlan, when: str) -> None:
    needs = needed(differences)
    for action in needs:
        say(f"{when}: {action}")
    if differences and not needs:
        say(f"nothing has to be reloaded: {plan.seen}")


def _client(name: str) -> Client:
    if (client := CLIENTS.get(name)) is None:
        raise ConfigError([f"{name[:80]!r} is not one of {', '.join(CLIENTS)}"])
    return client


def _registries(registries: Sequence[str]) -> tuple[str, ...]:
    """The registries by the names that clients use, each once. Raises `ConfigError`."""
    by_alias = {alias: str(entry["name"]) for entry in PUBLIC for alias in entry.get("aliases", [])}
    names, mistakes = [], []
    for text in registries:
        name = text.strip().lower()
        try:
            check_registry(name.removeprefix("*."))
        except RequestError as error:
            mistakes.append(f"--registry: {error}")
        names.append(by_alias.get(name, name))
    if mistakes:
        raise ConfigError(mistakes)
    return tuple(dict.fromkeys(names))


def _virtual(name: str | None) -> str:
    """Raises `ConfigError`."""
    try:
        return check_registry(name) if name is not None else ""
    except RequestError as error:
        raise ConfigError([f"--virtual: {error}"]) from error


def read_authority(path: Path | None, mirror: MirrorUrl) -> str | None:
    """The certificates in a PEM file. Raises `ConfigError`, also if it contains a key: the copies are public."""
    if path is None:
        return None
    if mirror.is_plain:
        raise ConfigError(["--ca-file: the mirror's URL is http://, so there is no certificate to trust"])
    try:
        text = path.read_text()
        if "PRIVATE KEY" in text:
            raise ConfigError([f"--ca-file: {path} contains a private key; give the certificate only"])
        if "BEGIN CERTIFICATE" not in text:
            raise ConfigError([f"--ca-file: {path} contains no certificate"])
        ssl.create_default_context(cadata=text)
    except ssl.SSLError:
        raise ConfigError([f"--ca-file: {path} contains no certificate"]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"--ca-file: {path}: {reason_of(error)}"]) from error
    return text


def read_account(username: str | None, password_file: Path | None) -> ClientLogin | None:
    """The login at the mirror. Raises `ConfigError`, without the password in its message."""
    if (username is None) != (password_file is None):
        raise ConfigError(["--username and --password-file belong together"])
    if username is None or password_file is None:
        return None
    try:
        password = password_file.read_text().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"--password-file: {password_file}: {reason_of(error)}"]) from error
    if not password or not username or ":" in username:
        raise ConfigError(["--username: empty or with a colon, or the password is empty"])
    return ClientLogin(username, password)
