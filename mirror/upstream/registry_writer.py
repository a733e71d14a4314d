"""Pushes to one registry over HTTP (distribution-spec, "Push" and "Content Management").

A blob:

    POST ?mount=&from= ── 201 ──> mounted
      │  or POST
      v  202, Location
    PATCH from the offset on ──┬── 202 ──> PUT ?digest= ── 201 ──> there
      ^                        └── broken off, 429, 416 ──> GET the session: Range ──┐
      └──────────────────────────────────────────────────────────────────────────────┤
                                          begun anew, at most twice <── unknown ─────┘

The first PATCH has no `Content-Range`, as docker sends it; only what resumes has one. Redirects are not followed. The
upload goes to the `Location` that the registry names, which may be another host, but credentials are sent to the
registry's own origin alone.

A writer shares nothing with the reader of the same registry: neither connections, nor tokens (those of pushes must not
serve the pulls of callers), nor back-off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from typing import Final

from mirror.aio.closing import close_all
from mirror.aio.memo import Memo
from mirror.errors import (
    DigestInvalid,
    DigestMismatch,
    UpstreamCircuitOpen,
    UpstreamInvalid,
    UpstreamNotFound,
    UpstreamThrottled,
    UpstreamUnavailable,
)
from mirror.oci.challenge import Scope
from mirror.oci.digest import Digest
from mirror.oci.manifest import ACCEPT, Manifest
from mirror.oci.reference import Reference
from mirror.policy.upstream.quoting import quoted
from mirror.policy.upstream.retrying import back_off
from mirror.policy.upstream.upload_range import received
from mirror.policy.upstream.url_bounds import UrlRefused
from mirror.ports import SentBlob
from mirror.upstream.calls import Call, Calls
from mirror.upstream.credentials.source import CredentialSource, GivenCredentials
from mirror.upstream.elsewhere import Elsewhere
from mirror.upstream.http.blob_sender import BlobSendingClient, pieces_of
from mirror.upstream.http.client import HttpClient
from mirror.upstream.http.download import CONTENT, REDIRECTS, Answer
from mirror.upstream.http.throttled_hosts import ThrottledHosts
from mirror.upstream.http.transport import Endpoint
from mirror.upstream.login import Passes
from mirror.upstream.manifest_answer import manifest_in
from mirror.upstream.parameters import Clocks, Hooks
from mirror.upstream.rate_limits import Accounts
from mirror.upstream.tokens import TokenSource

_ACCEPT: Final = ", ".join(ACCEPT)
_OCTETS: Final = "application/octet-stream"
#: Further tries of a small call, and of an upload without progress; and upload sessions that are begun for one blob.
_RETRIES: Final = 2
_STALLS: Final = 4
_SESSIONS: Final = 3
#: How often a call waits because the registry asks for that, and the longest such wait in seconds.
_WAITS: Final = 6
_LONGEST_WAIT: Final = 300.0
#: Bytes up to which a blob goes in the closing PUT.
_SMALL: Final = 64 * 1024
#: Seconds until the answer to a closing PUT and to the PUT of a manifest.
_LONG: Final = 300.0


class _SessionLost(Exception):
    """The registry does not know the upload session any more, or got other bytes than were sent."""


class RegistryWriter:
    """A `Writer` at one endpoint. `executor` runs the threads that send blobs."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        executor: Executor,
        credentials: CredentialSource,
        hooks: Hooks | None = None,
        clocks: Clocks | None = None,
    ) -> None:
        """Raises `UrlRefused` (a `ValueError`) for an invalid URL."""
        hooks = hooks or Hooks()
        self.clocks = clocks = clocks or Clocks()
        self._endpoint = endpoint
        self.name = endpoint.name
        self._url = endpoint.url.rstrip("/")
        self._credentials = credentials
        self._memo = Memo()
        hosts = ThrottledHosts(endpoint.name, lambda: clocks.monotonic())
        self._client = HttpClient(endpoint, hosts)
        self._sender = BlobSendingClient(endpoint, hosts, executor)

        def tokens(endpoint: Endpoint, credentials: CredentialSource) -> TokenSource:
            session = self._client.session
            return TokenSource(endpoint, session, credentials, self._memo, clocks=clocks, observe=hooks.observe)

        self._calls = Calls(
            endpoint,
            tokens=tokens(endpoint, credentials),
            elsewhere=Elsewhere(endpoint, self._memo, lambda registry: tokens(registry, GivenCredentials())),
            accounts=Accounts(endpoint, self._memo, hooks, clocks),
            hosts=hosts,
            hooks=hooks,
            clocks=clocks,
        )

    def __repr__(self) -> str:
        return f"<RegistryWriter {self.name} at {self._endpoint.bounds.base.public}>"

    # ----------------------------------------------------------------------------------------------- manifests, tags

    async def digest_of(self, repo: str, tag: str) -> Digest | None:
        """See `Writer`. By HEAD; by GET if the answer does not say the digest."""
        url = f"{self._url}/v2/{repo}/manifests/{tag}"
        answer = await self._ask("HEAD", "push_look", url, _push(repo), {"Accept": _ACCEPT}, (200, 404))
        if answer.status == 404:
            return None
        with suppress(DigestInvalid):
            return Digest.parse(answer.fields.get("Docker-Content-Digest", ""))
        manifest = await self.manifest(repo, tag)
        return None if manifest is None else manifest.digest

    async def has_manifest(self, repo: str, digest: Digest) -> bool:
        """See `Writer`."""
        url = f"{self._url}/v2/{repo}/manifests/{digest}"
        return (await self._ask("HEAD", "push_look", url, _push(repo), {"Accept": _ACCEPT}, (200, 404))).status == 200

    async def manifest(self, repo: str, reference: Reference) -> Manifest | None:
        """See `Writer`."""
        url = f"{self._url}/v2/{repo}/manifests/{reference}"
        headers = {"Accept": _ACCEPT, "Accept-Encoding": "identity"}
        answer = await self._ask("GET", "push_look", url, _push(repo), headers, (*CONTENT, 404))
        return None if answer.status == 404 else await manifest_in(answer, reference, self.name)

    async def put_manifest(self, repo: str, manifest: Manifest, reference: Reference) -> bool:
        """See `Writer`."""
        url, headers = f"{self._url}/v2/{repo}/manifests/{reference}", {"Content-Type": manifest.media_type}
        usable, sent = (200, 201, 202, 404), Passes()

        def note(passes: Passes) -> None:
            nonlocal sent
            sent = passes

        answer = await self._ask(
            "PUT", "push_manifest", url, _push(repo), headers, usable, manifest.content, patience=_LONG, note=note
        )
        if answer.status == 404:
            message = f"{self._endpoint.described} answers 404{quoted(answer.content, sent.own)}"
            raise UpstreamNotFound(message, upstream=self.name, status=404)
        self._check_digest(answer, manifest.digest)
        return "OCI-Subject" in answer.fields

    async def delete_tag(self, repo: str, tag: str) -> bool:
        """See `Writer`. A registry that deletes only by digest is not asked to: other tags would go as well."""
        url, scope = f"{self._url}/v2/{repo}/manifests/{tag}", Scope((f"repository:{repo}:delete,pull",))
        answer = await self._ask("DELETE", "push_delete", url, scope, {}, (200, 202, 204, 400, 404, 405))
        return answer.status not in (400, 405)

    # --------------------------------------------------------------------------------------------------------- blobs

    async def has_blob(self, repo: str, digest: Digest, size: int) -> bool:
        """See `Writer`. A redirect says that the blob is there; it is not followed."""
        url = f"{self._url}/v2/{repo}/blobs/{digest}"
        answer = await self._ask("HEAD", "push_look", url, _push(repo), {}, (200, 404, *REDIRECTS))
        if answer.status == 200:
            return answer.fields.get("Content-Length", str(size)) == str(size)
        return answer.status != 404

    async def put_blob(self, repo: str, blob: SentBlob, mounts: Sequence[str] = ()) -> bool:
        """See `Writer`."""
        location = None
        for source in mounts:
            location = await self._mount(repo, blob.digest, source)
            if location == "":
                return False
        for session in range(1, _SESSIONS + 1):
            try:
                await self._upload(repo, blob, location or await self._begin(repo))
            except _SessionLost as lost:
                location = None
                if session == _SESSIONS:
                    message = f"{self._endpoint.described} does not take {blob.digest}: {lost}"
                    raise DigestMismatch(message, upstream=self.name, status=400) from lost
            else:
                return True
        raise AssertionError("unreachable")

    async def _mount(self, repo: str, digest: Digest, source: str) -> str | None:
        """Try to mount a blob. Returns "" if it is there now, or the location of an upload session; None if the
        registry gives neither.
        """
        scope = _push(repo).union(Scope.pull(source))
        url = f"{self._url}/v2/{repo}/blobs/uploads/?mount={digest}&from={source}"
        try:
            answer = await self._ask("POST", "push_mount", url, scope, {}, (201, 202))
        except (UpstreamInvalid, UpstreamNotFound):
            # a registry without mounts, or that says so if the source is unknown
            return None
        if answer.status == 202:
            return self._location(answer)
        self._check_digest(answer, digest)
        return ""

    async def _begin(self, repo: str) -> str:
        url = f"{self._url}/v2/{repo}/blobs/uploads/"
        try:
            return self._location(await self._ask("POST", "push_begin", url, _push(repo), {}, (202,)))
        except UpstreamNotFound as error:
            message = (
                f"{self._endpoint.described} takes no upload to {repo}: the repository may have to be created first"
            )
            raise UpstreamNotFound(message, upstream=self.name, status=404) from error

    async def _upload(self, repo: str, blob: SentBlob, location: str) -> None:
        """Send a blob in a session. Raises `_SessionLost` if another session may succeed."""
        content = b""
        if blob.size <= _SMALL:
            content = await self._read_small(blob)
        else:
            location = await self._fill(repo, blob, location)
        closing = f"{location}{'&' if '?' in location else '?'}digest={blob.digest}"
        headers = {"Content-Type": _OCTETS}
        try:
            answer = await self._ask(
                "PUT", "push_commit", closing, _push(repo), headers, (200, 201, 204), content, patience=_LONG
            )
        except UpstreamNotFound as error:
            # the answer to an earlier try may have been lost
            if await self.has_blob(repo, blob.digest, blob.size):
                return
            raise _SessionLost(str(error)) from error
        except UpstreamInvalid as error:
            if error.status in (400, 416):
                raise _SessionLost(str(error)) from error
            raise
        self._check_digest(answer, blob.digest)
        blob.progress(blob.size)

    async def _read_small(self, blob: SentBlob) -> bytes:
        def read() -> bytes:
            reader = blob.open()
            try:
                return b"".join(piece for piece, _ in pieces_of(reader, 0, blob.size, blob.take, lambda _: None))
            finally:
                reader.close()

        return await self._sender.run(read)

    async def _fill(self, repo: str, blob: SentBlob, location: str) -> str:
        """Send all bytes of a blob; returns the location for the closing PUT."""
        # `most`: what the registry had at best; to say less and then more again is no progress
        offset, most, stalls, waits = 0, 0, 0, 0
        while offset < blob.size:
            try:
                location, offset = await self._patch(repo, blob, location, offset)
                if offset > most:
                    most, stalls = offset, 0
                    continue
                stalls += 1
            except UpstreamThrottled as error:
                waits += 1
                if waits > _WAITS or error.retry_after > _LONGEST_WAIT:
                    raise
                await self.clocks.sleep(error.retry_after)
            except UpstreamNotFound as error:
                raise _SessionLost(str(error)) from error
            except UpstreamUnavailable as error:
                stalls += 1
                if stalls > _STALLS:
                    raise
                await self.clocks.sleep(
                    error.retry_after
                    if isinstance(error, UpstreamCircuitOpen)
                    else back_off(stalls, self.clocks.jitter())
                )
            if stalls > _STALLS:
                raise _SessionLost("its bytes are refused again and again")
            location, offset = await self._look(repo, location, blob.size)
            if offset > most:
                most, stalls = offset, 0
        return location

    async def _patch(self, repo: str, blob: SentBlob, location: str, offset: int) -> tuple[str, int]:
        """One PATCH with the rest of a blob. Returns where to go on, and how many bytes the registry has."""
        headers = {"Content-Type": _OCTETS, "Content-Length": str(blob.size - offset)}
        if offset:
            headers["Content-Range"] = f"{offset}-{blob.size - 1}"

        async def send(passes: Passes) -> Answer:
            reader = await self._sender.run(blob.open, unwanted=lambda opened: opened.close())
            try:
                pieces = pieces_of(reader, offset, blob.size, blob.take, blob.progress)
                return await self._sender.send("PATCH", location, self._headers(location, passes, headers), pieces)
            finally:
                reader.close()

        # no retries: the registry may have a part of the bytes already
        usable = (200, 201, 202, 204, 416)
        answer = await self._calls.run(Call("push_bytes", _push(repo), send, lambda got: got.status in usable, 0))
        if answer.status == 416:
            return location, offset
        following = self._location(answer) if "Location" in answer.fields else location
        said = received(answer.fields.get("Range"))
        # `0-0` stands for one byte, or for none
        return following, blob.size if said is None or said > blob.size else said

    async def _look(self, repo: str, location: str, size: int) -> tuple[str, int]:
        """How many bytes an upload session has, and where to go on. Raises `_SessionLost`."""
        try:
            answer = await self._ask("GET", "push_look", location, _push(repo), {}, (200, 202, 204))
        except (UpstreamNotFound, UpstreamInvalid) as error:
            raise _SessionLost(str(error)) from error
        said = received(answer.fields.get("Range"))
        if said is None or said > size:
            raise _SessionLost("the registry does not say how many bytes it has")
        return self._location(answer) if "Location" in answer.fields else location, 0 if said == 1 else said

    # --------------------------------------------------------------------------------------------------------- calls

    async def _ask(
        self,
        method: str,
        event: str,
        url: str,
        scope: Scope,
        headers: Mapping[str, str],
        usable: tuple[int, ...],
        content: bytes = b"",
        *,
        patience: float | None = None,
        note: Callable[[Passes], None] = lambda passes: None,
    ) -> Answer:
        """A call with a small body. It waits if the registry asks for that. `note` is called with the login of each
        request.
        """

        async def send(passes: Passes) -> Answer:
            note(passes)
            sent = self._headers(url, passes, headers)
            return await self._client.send_once(method, url, sent, content, patience=patience)

        call = Call(event, scope, send, lambda answer: answer.status in usable, _RETRIES)
        for _ in range(_WAITS):
            try:
                return await self._calls.run(call)
            except UpstreamThrottled as error:
                if error.retry_after > _LONGEST_WAIT:
                    raise
                await self.clocks.sleep(error.retry_after)
        return await self._calls.run(call)

    def _headers(self, url: str, passes: Passes, more: Mapping[str, str]) -> dict[str, str]:
        """The headers of a request; credentials go to the registry's own origin alone."""
        try:
            own = self._endpoint.is_at(self._endpoint.bounds.next_hop(self._endpoint.bounds.base, url, 0))
        except UrlRefused as error:
            raise self._endpoint.invalid(str(error)) from error
        authorization = {"Authorization": passes.own} if passes.own and own else {}
        return {**more, "User-Agent": self._endpoint.user_agent, **authorization}

    def _location(self, answer: Answer) -> str:
        """Where an answer says that an upload goes on. Raises `UpstreamInvalid`."""
        try:
            return str(self._endpoint.bounds.next_hop(answer.url, answer.fields.get("Location"), 0))
        except UrlRefused as error:
            raise self._endpoint.invalid(f"the place of an upload: {error}", answer.status) from error

    def _check_digest(self, answer: Answer, digest: Digest) -> None:
        """Raises `DigestMismatch` if the registry says that it has stored something else."""
        said = answer.fields.get("Docker-Content-Digest")
        if said is not None and said.strip() != str(digest):
            message = f"{self._endpoint.described} has stored {said[:100]!r} instead of {digest}"
            raise DigestMismatch(message, upstream=self.name, status=answer.status)

    async def aclose(self) -> None:
        """Close the connections. Repeatable."""
        await close_all(self._client.aclose, self._sender.close, self._credentials.aclose, self._memo.aclose)


def _push(repo: str) -> Scope:
    """The scope for pushing to a repository, and looking what it has."""
    return Scope((f"repository:{repo}:pull,push",))
