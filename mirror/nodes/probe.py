"""Examines a mirror over the network, as a client sees it: connection, TLS, health pages, a trial pull. Blocking.

Each request has its own connection and time-out. A trial pull fetches a manifest and no blobs.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from cryptography import x509
from cryptography.x509.oid import NameOID

from mirror.errors import RequestError
from mirror.nodes.docker import BY_HTTP, TOKENS, TRUST_TOO
from mirror.nodes.findings import Finding, Level, judge_certificate_age, judge_clock
from mirror.nodes.plan import ClientLogin, MirrorUrl
from mirror.oci.digest import Digest
from mirror.oci.manifest import ACCEPT
from mirror.oci.strict_json import read_json
from mirror.policy.image_names import Image
from mirror.policy.upstream.retrying import parse_http_date

#: Seconds to connect, and to wait for an answer: the mirror may have to wait for a slow registry.
_DIAL: Final = 5.0
_ANSWER: Final = 60.0
#: The most bytes of an answer that are read; no manifest is larger.
_LARGEST: Final = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ProbeAnswer:
    """An answer; the names of headers are lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def code(self) -> str:
        """The code of an error (distribution-spec, "Error Codes"); empty if there is none."""
        return self._error("code")

    @property
    def said(self) -> str:
        """Status and message."""
        message = self._error("message")[:300]
        return f"status {self.status}: {message}" if message else f"status {self.status}"

    def _error(self, field: str) -> str:
        try:
            return str(read_json(self.body)["errors"][0][field])
        except (ValueError, KeyError, IndexError, TypeError):
            return ""


@dataclass(frozen=True, slots=True)
class Visitor:
    """Examines one mirror. `authority` is PEM text of the authorities to trust instead of the system's.

    `own`: the mirror is on this machine and is reached by a local address. No certificate names such an address, so the
    name in the certificate is not checked.
    """

    mirror: MirrorUrl
    authority: str | None = None
    account: ClientLogin | None = field(default=None, repr=False)
    own: bool = False

    def look(self) -> list[Finding]:
        """Examines connection, certificate, health pages, API version and clock.

        Stops early if the certificate is not accepted or nothing answers.
        """
        findings: list[Finding] = []
        if not self.mirror.is_plain:
            findings += self._certificate()
            if any(finding.level is Level.PROBLEM for finding in findings):
                return findings
        try:
            lives = self.ask("GET", "/livez")
        except (OSError, http.client.HTTPException) as error:
            return [*findings, no_answer(self.mirror, error)]
        findings.append(_page("/livez", lives, "is this the mirror's URL? See its log"))
        if date := lives.headers.get("date"):
            findings += _clock(date)
        for look in (self._ready, self._version):
            try:
                findings.append(look())
            except (OSError, http.client.HTTPException) as error:
                findings.append(no_answer(self.mirror, error))
        return findings

    def _ready(self) -> Finding:
        return _page("/readyz", self.ask("GET", "/readyz"), "the mirror, or something in front of it, is stopping")

    def _version(self) -> Finding:
        answer = self.ask("GET", "/v2/")
        version = answer.headers.get("docker-distribution-api-version", "")
        if answer.status == 401:
            advice = "" if self.account else "log in with --username and --password-file"
            level = Level.PROBLEM if self.account else Level.WARNING
            return Finding("API", level, "asks for a login", advice or "check user name and password")
        if answer.status != 200 or version != "registry/2.0":
            text = f"status {answer.status}, version {version or 'missing'}"
            return Finding(
                "API", Level.PROBLEM, text, "this is not the URL of a registry: is there a proxy in between?"
            )
        return Finding("API", Level.OK, version)

    def as_docker(self) -> list[Finding]:
        """Problems that only dockerd has, with a mirror that can be reached."""
        if self.mirror.is_plain:
            return []
        if self.mirror.host == "localhost":
            return [Finding("docker", Level.WARNING, BY_HTTP, "give the mirror another name")]
        try:
            asks_for_token = self._asks_for_token()
        except (OSError, http.client.HTTPException) as error:
            return [no_answer(self.mirror, error)]
        if asks_for_token and self.authority is not None and not self._is_trusted_by_system():
            return [Finding("docker", Level.WARNING, TOKENS, TRUST_TOO)]
        return []

    def _asks_for_token(self) -> bool:
        """True if a client without credentials is sent to a token endpoint. Raises like `ask`."""
        answer = self.stranger.ask("GET", "/v2/")
        return answer.status == 401 and answer.headers.get("www-authenticate", "").lower().startswith("bearer")

    def _is_trusted_by_system(self) -> bool:
        """True if the system's authorities alone suffice to trust the mirror's certificate."""
        try:
            with replace(self, authority=None)._connection():
                return True
        except ssl.SSLCertVerificationError:
            return False

    # -------------------------------------------------------------------------------------------- trial pull

    def pull(self, image: Image) -> list[Finding]:
        """Asks for an image's manifest by HEAD and by GET: with `?ns=`, as containerd does, or by the path alone if the
        image has the mirror's own name.
        """
        target = f"/v2/{image.repo.name}/manifests/{image.reference}"
        if image.repo.registry != self.mirror.address:
            target += f"?ns={image.repo.registry}"
        findings = []
        for method in ("HEAD", "GET"):
            try:
                answer = self.ask(method, target, {"Accept": ", ".join(ACCEPT)})
            except (OSError, http.client.HTTPException) as error:
                findings.append(no_answer(self.mirror, error))
                break
            findings.append(_pulled(method, image, answer))
        return findings

    # ------------------------------------------------------------------------------------------------ wires

    @property
    def stranger(self) -> Visitor:
        """The same without the account."""
        return replace(self, account=None)

    def at(self, elsewhere: MirrorUrl) -> Visitor:
        """The same at another URL, which a certificate must name."""
        return replace(self, mirror=elsewhere, own=False)

    def ask(
        self, method: str, target: str, headers: Mapping[str, str] | None = None, *, wait: float = _ANSWER
    ) -> ProbeAnswer:
        """Sends one request without a body and returns the answer, if it comes within `wait` seconds. Raises `OSError`,
        `http.client.HTTPException`.
        """
        with self._connection() as connection:
            connection.sock.settimeout(wait)
            given = {"User-Agent": "mirror-doctor", **(headers or {})}
            if self.account is not None:
                given["Authorization"] = self.account.basic
            connection.request(method, target, headers=given)
            answer = connection.getresponse()
            named = {name.lower(): value for name, value in answer.getheaders()}
            return ProbeAnswer(answer.status, named, answer.read(_LARGEST))

    @contextlib.contextmanager
    def _connection(self) -> Iterator[http.client.HTTPConnection]:
        host, port = self._place()
        connection = http.client.HTTPConnection(host, port, timeout=_DIAL)
        try:
            connection.connect()
            connection.sock.settimeout(_ANSWER)
            if not self.mirror.is_plain:
                connection.sock = self._trusting().wrap_socket(connection.sock, server_hostname=host)
            yield connection
        finally:
            connection.close()

    def _place(self) -> tuple[str, int]:
        return self.mirror.host.strip("[]"), self.mirror.port or (80 if self.mirror.is_plain else 443)

    def _trusting(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cadata=self.authority)
        if self.own:
            # the trusted certificate is the mirror's own, not an authority's, and it does not name 127.0.0.1
            context.check_hostname = False
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        return context

    def _certificate(self) -> list[Finding]:
        """Whom the mirror's certificate is for, how long it is valid, and whether it is trusted."""
        host, port = self._place()
        unsure = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        unsure.check_hostname, unsure.verify_mode = False, ssl.CERT_NONE  # only to read the certificate
        try:
            with (
                socket.create_connection((host, port), timeout=_DIAL) as raw,
                unsure.wrap_socket(raw, server_hostname=host) as wrapped,
            ):
                shown = x509.load_der_x509_certificate(wrapped.getpeercert(binary_form=True) or b"")
        except ssl.SSLError as error:
            text = f"no TLS at {self.mirror}: {error.reason or 'the handshake failed'}"
            return [Finding("certificate", Level.PROBLEM, text, "should the URL begin with http://?")]
        except (OSError, ValueError) as error:
            return [no_answer(self.mirror, error)]
        begins, ends = shown.not_valid_before_utc.timestamp(), shown.not_valid_after_utc.timestamp()
        age = judge_certificate_age(_names(shown), begins, ends, time.time())
        if age.level is Level.PROBLEM:
            return [age]
        try:
            with self._connection():
                return [age]
        except ssl.SSLCertVerificationError as error:
            advice = "set --ca-file, also for `mirror configure`; or use a certificate for this host name"
            text = f"for {_names(shown)}: not trusted: {error.verify_message}"
            return [Finding("certificate", Level.PROBLEM, text, advice)]
        except OSError as error:
            return [age, no_answer(self.mirror, error)]


def _names(shown: x509.Certificate) -> str:
    try:
        names = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        written = [str(name.value) for name in names if isinstance(name, x509.DNSName | x509.IPAddress)]
    except x509.ExtensionNotFound:
        written = []
    common = [str(name.value) for name in shown.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    return ", ".join(written[:5] or common) or "no name"


def no_answer(mirror: MirrorUrl, error: Exception) -> Finding:
    """The finding about a mirror that did not answer."""
    if isinstance(error, socket.gaierror):
        return Finding("reach", Level.PROBLEM, f"{mirror.host}: no such name", "check DNS, or the name")
    if isinstance(error, http.client.HTTPException):  # also if the connection is closed without an answer
        text = f"{mirror}: the answer is not HTTP"
        return Finding("reach", Level.PROBLEM, text, "should the URL begin with https://? Is the port right?")
    why = (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
    why = "no answer in time" if isinstance(error, TimeoutError) else why
    advice = "is it running there? Does a firewall block this machine?"
    return Finding("reach", Level.PROBLEM, f"{mirror}: {why}", advice)


def _page(name: str, answer: ProbeAnswer, advice: str) -> Finding:
    if answer.status == 200:
        return Finding(name, Level.OK, answer.body[:40].decode("ascii", "replace").strip())
    return Finding(name, Level.PROBLEM, f"status {answer.status}", advice)


def _clock(date: str) -> list[Finding]:
    moment = parse_http_date(date)
    return [] if moment is None else [judge_clock(time.time() - moment)]


def _pulled(method: str, image: Image, answer: ProbeAnswer) -> Finding:
    what, status = f"{method} {image}", answer.headers.get("cache-status", "")
    if answer.status != 200:
        return Finding(what, Level.PROBLEM, answer.said, _ADVICE.get(answer.status, LOG))
    if not status.startswith("mirror;"):
        advice = "another server answers at this URL, or a proxy rewrites its headers"
        return Finding(what, Level.PROBLEM, "the answer is not from the mirror: its Cache-Status is missing", advice)
    digest = answer.headers.get("docker-content-digest", "")
    if method == "GET" and not _is_digest(answer.body, digest):
        return Finding(
            what, Level.PROBLEM, f"the bytes do not match {digest or 'a digest'}", "does a proxy change them?"
        )
    if "upstream-unavailable" in status:
        return Finding(what, Level.WARNING, f"stale: {status}", "the mirror cannot reach the registry: see its log")
    if "bucket-unavailable" in status:
        return Finding(what, Level.WARNING, f"stale: {status}", "the mirror cannot reach its bucket: see its log")
    return Finding(what, Level.OK, f"{digest[:19]} ({status})")


LOG: Final = "look for the request in the mirror's log"
_ADVICE: Final = {
    401: "the mirror, or the registry behind it, requires a login",
    403: "a rule of the mirror, or the registry, denies this image",
    404: "is the name right? Is the registry configured at the mirror?",
    429: "the registry throttles the mirror: wait, or give the mirror an account there",
    503: "the mirror cannot reach the registry, and has no copy: run mirror check --online there",
    504: "the registry does not answer the mirror in time: run mirror check --online there",
}


def _is_digest(body: bytes, digest: str) -> bool:
    try:
        wanted = Digest.parse(digest)
    except RequestError:
        return False
    return Digest.of(body, wanted.algorithm) == wanted
