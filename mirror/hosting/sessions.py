"""Upload sessions: who may go on with which, and how many there may be.

A session belongs to one caller and one repository. Its id is random, so a caller cannot guess one; it is bound all the
same, because ids stand in logs and in the answers that proxies see.
"""

from __future__ import annotations

import hashlib
from typing import Final, Protocol

from mirror.errors import TooManyUploads, UploadUnknown
from mirror.oci.reference import Repo
from mirror.ports import UploadFile, Uploads

#: Hexadecimal digits of a hash: 128 bits, so that no caller can choose a name with another's hash.
_DIGITS: Final = 32


class SessionNames(Protocol):
    """The ids of sessions as clients of a cluster see them. Quick; may be used from any thread."""

    def shown(self, session: str, repo: Repo, caller: str) -> str:
        """The id for the client, of a session that is here."""

    def own(self, name: str, repo: Repo, caller: str) -> str | None:
        """The session that is here under a client's id; None if there certainly is none of this caller."""


class Sessions:
    """The upload sessions of this machine. All calls block for a short time, and raise `StoreError`."""

    def __init__(
        self, uploads: Uploads, *, most: int = 1000, most_per_caller: int = 100, names: SessionNames | None = None
    ) -> None:
        """`names` are those of a cluster; None: clients see the ids as they are."""
        self._names = names
        self._uploads = uploads
        self._most = most
        self._most_per_caller = most_per_caller

    def __repr__(self) -> str:
        return f"<Sessions of at most {self._most}>"

    def begin(self, repo: Repo, caller: str) -> str:
        """Begins a session and returns its id. Raises `TooManyUploads`, `StoreFull`.

        Workers that begin sessions at the same moment may together exceed a limit by their number.
        """
        sessions = self._uploads.sessions()
        if len(sessions) >= self._most:
            raise TooManyUploads(f"too many uploads are open ({len(sessions)}): no more are accepted now")
        of_caller = _hash(caller)
        own = sum(session.owner.startswith(of_caller) for session in sessions)
        if own >= self._most_per_caller:
            raise TooManyUploads(f"too many of your uploads are open ({own}): complete or cancel one first")
        session = self._uploads.begin(_owner(repo, caller))
        return session if self._names is None else self._names.shown(session, repo, caller)

    def offset(self, session: str, repo: Repo, caller: str) -> int:
        """Returns how many bytes a session has. Raises `UploadUnknown`. Quick enough for the event loop."""
        return self._find(session, repo, caller)[1]

    def _find(self, session: str, repo: Repo, caller: str) -> tuple[str, int]:
        """The session's id here, and its size."""
        own = session if self._names is None else self._names.own(session, repo, caller)
        found = self._uploads.session(own) if own is not None else None
        if own is None or found is None or found.owner != _owner(repo, caller):
            raise UploadUnknown(f"{repo} has no such upload")
        return own, found.size

    def open(self, session: str, repo: Repo, caller: str) -> UploadFile:
        """Returns the file of a session, locked. Raises `UploadUnknown`, `UploadBusy`."""
        file = self._uploads.open(self._find(session, repo, caller)[0])
        if file is None:
            raise UploadUnknown(f"{repo} has no such upload")
        return file


def _owner(repo: Repo, caller: str) -> str:
    return f"{_hash(caller)}_{_hash(str(repo))}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]
