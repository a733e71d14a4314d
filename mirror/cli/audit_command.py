"""What commands change, or try to, is written to the same audit log as what the server does."""

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
    """One line about what is done inside, once it is over; what is learnt meanwhile may be added to what is yielded.
    None about a `dry_run`, which changes nothing.

    What ends with one of our errors is written down with it, and with the status that the admin API would give it; what
    is stopped by hand has done a part of it, and is written down with the status of a client that has gone.
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
    """One line, if there is an audit log, as `cli:<user>`. Raises nothing."""
    path = loaded.access.audit_log
    if path is None:
        return
    made = not path.exists()
    log = AuditLog(path)
    log.record(caller=f"cli:{_user()}", client="local", action=action, **what)
    log.close()
    if made:
        # the server must be able to go on with what root has begun
        with suppress(OSError):
            owner = Layout(loaded.store.root).marker.stat()
            os.chown(path, owner.st_uid, owner.st_gid)


def _user() -> str:
    """By number where it has no name; of `sudo` who called it."""
    if os.geteuid() == 0 and (called := os.environ.get("SUDO_USER")):
        return f"{called} (root)"
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
