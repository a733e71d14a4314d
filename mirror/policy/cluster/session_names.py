"""The ids of upload sessions as clients of a cluster see them: which replica has the session, and whose it is.

    <id at that replica>.<tag of the replica>.<MAC over id, tag, repository, caller>

The tag is looked up among the members; nothing in an id says where to connect to. The MAC lets each replica refuse an
id that was made up, or that is another caller's, without asking the one that has the session.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Sequence
from typing import Final

from mirror.oci.reference import Repo

_NAME: Final = re.compile(r"(?P<id>[A-Za-z0-9_-]{1,150})\.(?P<tag>[0-9a-f]{12})\.(?P<mac>[0-9a-f]{32})")


def member_tag(member: str) -> str:
    """A short name of a member; it reveals no address."""
    return hashlib.sha256(member.encode()).hexdigest()[:12]


def session_name(secret: bytes, session: str, member: str, repo: Repo, caller: str) -> str:
    """The id for a client, of a session that the member has under the id `session`."""
    tag = member_tag(member)
    return f"{session}.{tag}.{_mac(secret, session, tag, repo, caller)}"


def read_session_name(secrets: Sequence[bytes], name: str, repo: Repo, caller: str) -> tuple[str, str] | None:
    """The id of the session at the replica that has it, and the tag of that replica. None if no replica has given this
    id to this caller for this repository.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    session, tag = found["id"], found["tag"]
    macs = (_mac(secret, session, tag, repo, caller) for secret in secrets)
    return (session, tag) if any(hmac.compare_digest(mac, found["mac"]) for mac in macs) else None


def member_of(tag: str, members: Iterable[str]) -> str | None:
    """The member with this tag; None if it is none of these."""
    return next((member for member in members if member_tag(member) == tag), None)


def _mac(secret: bytes, session: str, tag: str, repo: Repo, caller: str) -> str:
    made = hmac.new(secret, digestmod=hashlib.sha256)
    for part in ("upload session", session, tag, str(repo), caller):
        data = part.encode("utf-8", "surrogateescape")
        made.update(b"%d:%s," % (len(data), data))
    return made.hexdigest()[:32]
