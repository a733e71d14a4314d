"""Commands write what they change, or try to change, to the audit log of the server."""

from __future__ import annotations

import asyncio
import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import typer

from mirror import config as settings
from mirror.access.audit import AuditLog
from mirror.errors import MirrorError, answer_for
from mirror.store.local.layout import Layout


@contextmanager
def audited(
    loaded: settings.Config, action: str, *, dry_run: bool = False, **what: object
) -> Iterator[dict[str, object]]:
    """Write one line about the work inside the `with`, when it ends. The work may add fields to the yielded dict. A
    `dry_run` changes nothing and writes nothing.

    If the work raises a `MirrorError`, the line has its message, and the status that the admin API would answer with.
    If the command is interrupted, the status is 499, as for a client that disconnects.
    """
    about = dict(what)
    if dry_run:
        yield about
        return
    try:
        yield about
    except MirrorError as error:
        about["reason"] = f"{type(error).__name__}: {error}"
        _audit(loaded, action, status=answer_for(error).status, **about)
        raise
    except (KeyboardInterrupt, asyncio.CancelledError, typer.Exit):
        _audit(loaded, action, **{**about, "status": 499, "reason": "interrupted"})
        raise
    _audit(loaded, action, **{"status": 200, **about})


def _audit(loaded: settings.Config, action: str, **what: object) -> None:
    """Write one line as the caller `cli:<user>`, if there is an audit log. Raises nothing."""
    path = loaded.access.audit_log
    if path is None:
        return
    is_new = not path.exists()
    log = AuditLog(path)
    log.record(caller=cli_caller(), client="local", action=action, **what)
    log.close()
    if is_new:
        # root may have created the file, and the server must be able to write to it
        with suppress(OSError):
            owner = Layout(loaded.store.root).marker.stat()
            os.chown(path, owner.st_uid, owner.st_gid)


def cli_caller() -> str:
    """The caller of this command, as in the audit log and in records: `cli:<user>`."""
    return f"cli:{_user()}"


def _user() -> str:
    """The user's name, or number if it has no name; under `sudo`, the calling user."""
    if os.geteuid() == 0 and (user := os.environ.get("SUDO_USER")):
        return f"{user} (root)"
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
