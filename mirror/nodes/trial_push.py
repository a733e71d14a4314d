"""Examines whether this machine could push to a hosted repository. Blocking. Nothing is pushed.

    POST without a login ──> 401 ──> the token endpoint that it names ──> token ──> GET of a tag: may it pull?
                                                                            │
           DELETE of the session: nothing is left <── 202 <── POST again ───┴──> PATCH of a session that does not exist

The PATCH announces a large body and sends none: the mirror refuses it at once. A proxy that limits the size of bodies
answers it in the mirror's place, and one that collects bodies answers nothing.
"""

from __future__ import annotations

import http.client
from dataclasses import dataclass, field, replace
from typing import Final
from urllib.parse import urlencode, urlsplit

from mirror.errors import ConfigError
from mirror.nodes.findings import Finding, Level
from mirror.nodes.plan import MirrorUrl
from mirror.nodes.probe import LOG, ProbeAnswer, Visitor, no_answer
from mirror.oci.challenge import parse_challenges
from mirror.oci.strict_json import read_json

#: Bytes that the trial announces, as a large layer has them.
_LARGE: Final = 1 << 30
#: Seconds within which the mirror refuses a body that it has not got.
_AT_ONCE: Final = 10.0
#: Nobody has it, in all likelihood; whoever has it gets it.
_TAG: Final = "mirror-doctor"


class _Stopped(Exception):
    """The finding after which nothing else can be examined."""

    def __init__(self, what: str, text: str, advice: str) -> None:
        super().__init__(text)
        self.finding = Finding(what, Level.PROBLEM, text, advice)


@dataclass(slots=True)
class TrialPush:
    """One examination. `name` is the repository as clients write it after the host: `corp/team-a/app`."""

    visitor: Visitor
    name: str
    _token: str | None = field(default=None, repr=False)
    _findings: list[Finding] = field(default_factory=list)

    def look(self) -> list[Finding]:
        """The findings `login`, `pull NAME`, `push NAME` and `large bodies`, up to the first that makes the others
        pointless.
        """
        try:
            began = self._login()
            pull = self._pull()
            self._findings.append(pull)
            self._findings.append(self._push(began))
            if pull.level is Level.PROBLEM:
                self._findings[self._findings.index(pull)] = self._only_push(pull)
            self._findings.append(self._bodies())
        except _Stopped as stopped:
            self._findings.append(stopped.finding)
        except (OSError, http.client.HTTPException) as error:
            self._findings.append(no_answer(self.visitor.mirror, error))
        return self._findings

    @property
    def _uploads(self) -> str:
        return f"/v2/{self.name}/blobs/uploads/"

    def _ask(self, method: str, target: str) -> ProbeAnswer:
        return self.visitor.stranger.ask(method, target, self._authorization)

    @property
    def _authorization(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._token}"} if self._token else {}

    # ---------------------------------------------------------------------------------------------------- the login

    def _login(self) -> ProbeAnswer | None:
        """Gets a token as clients do; the answer to a POST that needed none. Raises `_Stopped`."""
        answer = self._ask("POST", self._uploads)
        if answer.status != 401:
            return answer
        challenges = parse_challenges([answer.headers.get("www-authenticate", "")])
        bearer = next((one.parameters for one in challenges if one.scheme == "bearer"), {})
        if not (realm := bearer.get("realm", "")):
            raise _Stopped("login", "401 without a token endpoint", "another server, or a proxy, asks for the login")
        where = self._endpoint(realm)
        if self.visitor.account is None:
            raise _Stopped("login", "asks for a login to push", "log in with --username and --password-file")
        query = urlencode({"service": bearer.get("service", ""), "scope": f"repository:{self.name}:pull,push"})
        try:
            answered = where.ask("GET", f"{urlsplit(realm).path}?{query}")
        except (OSError, http.client.HTTPException) as error:
            text = f"the mirror sends clients to {realm}: {no_answer(where.mirror, error).text}"
            raise _Stopped("login", text, "let the proxy pass the client's Host on, or set access.realm") from error
        if answered.status != 200:
            raise _Stopped("login", f"{realm}: {answered.said}", _LOGIN.get(answered.status, LOG))
        try:
            self._token = str(read_json(answered.body)["token"])
        except (ValueError, KeyError, TypeError):
            raise _Stopped("login", f"{realm}: the answer has no token", _OTHER) from None
        self._findings.append(Finding("login", Level.OK, f"as {self.visitor.account.username}, at {realm}"))
        return None

    def _endpoint(self, realm: str) -> Visitor:
        """Who asks the token endpoint. Raises `_Stopped` if clients would send a password in clear, or to nowhere."""
        parts, mirror = urlsplit(realm), self.visitor.mirror
        if parts.scheme == "http" and not mirror.is_plain:
            advice = "let the proxy send X-Forwarded-Proto: https, or set access.realm"
            raise _Stopped("login", f"the mirror sends clients to {realm}, without TLS", advice)
        try:
            elsewhere = MirrorUrl.parse(f"{parts.scheme}://{parts.netloc}")
        except ConfigError as error:
            raise _Stopped(
                "login", f"the mirror sends clients to {realm[:200]!r}: {error}", "set access.realm"
            ) from error
        # on its own machine, the mirror is reached by an address that the realm does not have
        return self.visitor if mirror.is_at(realm) or self.visitor.own else self.visitor.at(elsewhere)

    # ---------------------------------------------------------------------------------------------------- the rights

    def _pull(self) -> Finding:
        """The mirror tells who may pull that a tag is missing, and others that the repository is."""
        what, answer = f"pull {self.name}", self._ask("GET", f"/v2/{self.name}/manifests/{_TAG}")
        if answer.status == 200 or answer.code == "MANIFEST_UNKNOWN":
            return Finding(what, Level.OK, f"{self._caller} may pull")
        if answer.code == "NAME_UNKNOWN" or answer.status in (401, 403):
            return Finding(what, Level.PROBLEM, f"{self._caller} may not pull: {answer.said}", self._rule("pull"))
        return Finding(what, Level.PROBLEM, answer.said, LOG)

    def _only_push(self, pull: Finding) -> Finding:
        """The finding about a pull that failed, of a caller who may push. Under a virtual name that nobody has yet, the
        answer is the same as for a caller who may not pull.
        """
        if "no such repository" not in pull.text:
            return pull
        text = f"{self._caller} may push, but not pull; or this is a virtual name under which nothing was pushed yet"
        return replace(pull, level=Level.WARNING, text=text)

    def _push(self, began: ProbeAnswer | None) -> Finding:
        """Raises `_Stopped` if no upload can begin."""
        what = f"push {self.name}"
        answer = began or self._ask("POST", self._uploads)
        if answer.status == 202 and (location := answer.headers.get("location", "")):
            parts = urlsplit(location)
            target = f"{parts.path}?{parts.query}" if parts.query else parts.path
            cancelled = self._ask("DELETE", target)
            if parts.netloc and not self.visitor.mirror.is_at(location):
                text = f"the next request would go to {parts.scheme}://{parts.netloc}"
                return Finding(what, Level.PROBLEM, text, "let the proxy leave the header Location alone")
            if cancelled.status == 204:
                return Finding(what, Level.OK, f"{self._caller} may push: an upload was begun, and cancelled")
            text = f"an upload was begun, but not cancelled: {cancelled.said}"
            return Finding(what, Level.WARNING, text, "does a proxy forbid DELETE? The mirror ends it by itself")
        if answer.status == 403 and "may not push" in answer.said:
            raise _Stopped(what, answer.said, self._rule("push"))
        if answer.code == "NAME_UNKNOWN":
            raise _Stopped(what, f"{self._caller} may neither pull nor push: {answer.said}", self._rule("pull", "push"))
        raise _Stopped(what, answer.said, _PUSH.get(answer.code, _PUSH.get(str(answer.status), LOG)))

    @property
    def _caller(self) -> str:
        return self.visitor.account.username if self._token and self.visitor.account else "everybody"

    def _rule(self, *actions: str) -> str:
        """The rule that is missing, to be written at the mirror."""
        who = f"user:{self._caller}" if self._token else "*"
        listed = ", ".join(f'"{action}"' for action in actions)
        rule = f'effect = "allow", callers = ["{who}"], actions = [{listed}], repositories = ["{self.name}"]'
        return (
            f"at the mirror, add an [[access.rule]] with {rule} (for a virtual name, the repository of its member); "
            "a robot needs it in its own list (--allow)"
        )

    # ---------------------------------------------------------------------------------------------------- the way

    def _bodies(self) -> Finding:
        what, target = "large bodies", f"{self._uploads}mirror-doctor"
        headers = {"Content-Length": str(_LARGE), "Content-Type": "application/octet-stream", **self._authorization}
        try:
            answer = self.visitor.stranger.ask("PATCH", target, headers, wait=_AT_ONCE)
        except TimeoutError:
            text = "a layer does not reach the mirror before all of it has been sent"
            return Finding(what, Level.PROBLEM, text, "switch the buffering of requests off in the proxy")
        if answer.status == 413:
            text = "a layer of 1 GiB is refused on its way to the mirror (413)"
            return Finding(what, Level.PROBLEM, text, "lift the proxy's limit of bodies (client_max_body_size 0)")
        if answer.code == "BLOB_UPLOAD_UNKNOWN":
            return Finding(what, Level.OK, "reach the mirror as they come")
        return Finding(what, Level.WARNING, answer.said, _OTHER)


_OTHER: Final = "does a proxy, or another server, answer in the mirror's place?"
_LOGIN: Final = {
    401: "check user name and password; `mirror account list` and `mirror token list` show who there is",
    404: "the token endpoint is not passed on to the mirror: let the proxy forward /token as well",
    429: "too many wrong passwords came from this address: wait a minute",
}
#: By code or status: what to do about a push that is refused before it begins.
_PUSH: Final = {
    "UNSUPPORTED": "the name must begin with a registry that the mirror hosts ([[hosted]])",
    "DENIED": "repositories, read_only or quota of [[hosted]] forbid it: docs/hosted.md, When a push fails",
    "TOOMANYREQUESTS": "too many uploads are open: wait, or raise max_uploads at the mirror",
    "401": "the token is refused: is the mirror one of several, without a common token_key_file?",
    "413": "lift the proxy's limit of bodies (client_max_body_size 0)",
    "507": "the mirror's disk is full with what must stay",
    "503": "the mirror cannot read or write its records: its log has the reason",
}
