"""Which replica has an upload session."""

from __future__ import annotations

from mirror.oci.reference import Repo
from mirror.peers.members import ClusterMembers
from mirror.peers.secret_file import ClusterSecrets
from mirror.policy.cluster.session_names import member_of, read_session_name, session_name


class SessionOwners:
    """Makes and reads the ids of upload sessions. May be used from any thread; quick."""

    def __init__(self, members: ClusterMembers, secrets: ClusterSecrets) -> None:
        self._members = members
        self._secrets = secrets

    def __repr__(self) -> str:
        return f"<SessionOwners of {self._members!r}>"

    def shown(self, session: str, repo: Repo, caller: str) -> str:
        """The id for the client, of a session of this replica."""
        return session_name(self._secrets.all()[0], session, self._members.own, repo, caller)

    def own(self, name: str, repo: Repo, caller: str) -> str | None:
        """The session of this replica that a client means; None if it is none of this caller here."""
        found = read_session_name(self._secrets.all(), name, repo, caller)
        return found[0] if found is not None and self._of(found[1]) == self._members.own else None

    def elsewhere(self, name: str, repo: Repo, caller: str) -> str | None:
        """The other replica that has the session; None if this one has it, or no replica that is known."""
        found = read_session_name(self._secrets.all(), name, repo, caller)
        member = self._of(found[1]) if found is not None else None
        return member if member != self._members.own else None

    def _of(self, tag: str) -> str | None:
        return member_of(tag, self._members.known())
