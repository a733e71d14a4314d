"""One remote registry, accessed by the distribution API.

Small answers are fetched with aiohttp (`http/client.py`), blobs with blocking sockets in threads (`http/download.py`).
`calls.py` retries both, and keeps away from a registry that is down or throttles. HEAD is never sent for blobs: some
registries answer it with 401 although they answer GET with a redirect.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, Literal

from mirror.aio.closing import close_all
from mirror.aio.memo import Memo
from mirror.errors import (
    UpstreamDenied,
    UpstreamError,
    UpstreamInvalid,
    UpstreamUnavailable,
)
from mirror.oci.challenge import Scope
from mirror.oci.digest import Digest
from mirror.oci.manifest import ACCEPT, LARGEST, OCI_INDEX, Descriptor, Manifest
from mirror.oci.reference import Reference
from mirror.policy.upstream.budget import Budget, is_spent, patience
from mirror.policy.upstream.heads import WORTH_A_GET, is_worth_a_get, read_head
from mirror.policy.upstream.retrying import Circuit, is_throttling, parse_http_date, parse_retry_after, throttle_seconds
from mirror.ports import Body, TagBatch
from mirror.upstream.blob_parts import RegistryBlobParts, closed_after
from mirror.upstream.calls import Call, Calls
from mirror.upstream.credentials.source import CredentialSource, GivenCredentials
from mirror.upstream.elsewhere import Elsewhere
from mirror.upstream.endpoint_health import Health, health_of
from mirror.upstream.http.blob_client import BlobClient
from mirror.upstream.http.body import EncodedBody, HttpBody
from mirror.upstream.http.client import AnswerTooLarge, HttpClient, ReadContent
from mirror.upstream.http.download import CONTENT, LARGEST_ERROR, Answer, Transfer
from mirror.upstream.http.page_file import PageFile
from mirror.upstream.http.throttled_hosts import HostThrottled, ThrottledHosts
from mirror.upstream.http.transport import Endpoint
from mirror.upstream.login import Passes
from mirror.upstream.manifest_answer import manifest_in
from mirror.upstream.parameters import Clocks, Hooks, Limits
from mirror.upstream.rate_limits import Accounts
from mirror.upstream.referrers_api import LACKS_API, FallbackChildren, NoReferrersApi, ReferrersPage, list_referrers
from mirror.upstream.tag_list import REFUSES_PAGING, TagAnswer, TagList
from mirror.upstream.tokens import TokenSource
from mirror.upstream.whole_answers import WholeAnswers, is_whole

_ACCEPT: Final = ", ".join(ACCEPT)

#: Whether a call can use an answer.
_IsUsable = Callable[[Answer], bool]


def _is_one_of(*statuses: int) -> _IsUsable:
    return lambda answer: answer.status in statuses


_has_content: Final = _is_one_of(*CONTENT)
_is_head: Final = _is_one_of(200, *WORTH_A_GET)
_is_tags: Final = _is_one_of(*CONTENT, *REFUSES_PAGING)


class RegistryUpstream:
    """An `Upstream` at one endpoint.

    `executor` runs the blocking calls for blobs. `memo` shares tokens, challenges and the pull quota; the latter also
    with other processes.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        executor: Executor,
        memo: Memo,
        credentials: CredentialSource | None = None,
        limits: Limits | None = None,
        hooks: Hooks | None = None,
        clocks: Clocks | None = None,
    ) -> None:
        """Raises `UrlRefused` (a `ValueError`) for an invalid URL."""
        limits, hooks = limits or Limits(), hooks or Hooks()
        self.clocks = clocks = clocks or Clocks()
        self._endpoint = endpoint
        self.name = endpoint.name
        #: The base URL, without a slash at its end.
        self.url = endpoint.url.rstrip("/")
        self._retries = limits.retries
        self._hooks = hooks
        self._blobs = asyncio.Semaphore(limits.blobs_at_once)
        self._most = limits.connections_per_blob
        self._small_calls = asyncio.Semaphore(limits.calls_at_once)
        self._credentials = credentials or GivenCredentials()
        self._whole_answers = WholeAnswers(lambda: clocks.monotonic())
        self._children = FallbackChildren()
        self._tag_list = TagList(endpoint, limits.lists)
        #: Seconds by which our clock is ahead of upstream's, as `check` measured; None if upstream sent no date.
        self.ahead: float | None = None
        hosts = ThrottledHosts(endpoint.name, lambda: clocks.monotonic())
        self._client = HttpClient(endpoint, hosts)
        self._blob_client = BlobClient(endpoint, Transfer(endpoint, hosts, clock=clocks.monotonic), executor)

        def tokens(endpoint: Endpoint, credentials: CredentialSource) -> TokenSource:
            return TokenSource(endpoint, self._client.session, credentials, memo, clocks=clocks, observe=hooks.observe)

        self._tokens = tokens(endpoint, self._credentials)
        self._accounts = Accounts(endpoint, memo, hooks, clocks)
        self._calls = Calls(
            endpoint,
            tokens=self._tokens,
            elsewhere=Elsewhere(endpoint, memo, lambda registry: tokens(registry, GivenCredentials())),
            accounts=self._accounts,
            hosts=hosts,
            hooks=hooks,
            clocks=clocks,
        )

    @property
    def budget(self) -> Budget | None:
        """The pulls that upstream still allowed our own account at the last answer; None if it does not say."""
        return self._accounts.own.budget

    @property
    def patience(self) -> float:
        """See `Upstream`."""
        return patience(self._accounts.current.budget, self.clocks.now())

    def health(self, *more: Circuit) -> list[Health]:
        """The health of this one address. `more` are circuits that others keep about it."""
        now = self.clocks.monotonic()
        logins = self._credentials.issuing, self._tokens.login
        circuits = (self._calls.circuit, *more)
        return [
            health_of(self.url, circuits, self._accounts.own.throttled_until - now, now, logins, self._calls.trouble)
        ]

    async def resolve(self, repo: str, reference: Reference) -> Descriptor:
        """Resolve by HEAD, which never counts as a pull; by GET if HEAD fails or says too little (see `Upstream`).

        Raises `UpstreamThrottled` for a tag if no pulls are left: the manifest that it names could not be fetched.
        """
        by_tag = not isinstance(reference, Digest)
        if by_tag:
            await self._accounts.within_budget()
        try:
            answer = await self._head(repo, reference)
        except UpstreamUnavailable as error:
            if not _is_worth_a_get(error):
                raise
            return (await self._manifest(repo, reference, LARGEST, retries=0)).descriptor
        spent = by_tag and is_spent(self._accounts.current.budget, self.clocks.now())
        if answer.status == 404 and spent:
            raise self._calls.not_found(answer)
        if spent:
            raise self._accounts.spent()
        if answer.status == 200 and (descriptor := read_head(answer.fields, reference)):
            return descriptor
        return (await self.manifest(repo, reference)).descriptor

    async def _head(self, repo: str, reference: Reference) -> Answer:
        url, read = self._url(repo, f"manifests/{reference}"), self._client.whole(LARGEST)
        # one try fewer by HEAD, because the last try is by GET
        return await self._calls.run(
            Call(
                "resolve",
                Scope.pull(repo),
                partial(self._send, "HEAD", url, _ACCEPT, read),
                _is_head,
                self._retries - 1,
                has_fallback=_is_worth_a_get,
            )
        )

    async def manifest(self, repo: str, reference: Reference) -> Manifest:
        """Fetch a manifest of at most 4 MiB and hash it before it is parsed (see `Upstream`). This counts as a pull."""
        return await self._manifest(repo, reference, LARGEST, retries=self._retries)

    async def _manifest(self, repo: str, reference: Reference, limit: int, *, retries: int) -> Manifest:
        await self._accounts.within_budget()
        url, read = self._url(repo, f"manifests/{reference}"), self._client.whole(limit)
        send = partial(self._send, "GET", url, _ACCEPT, read)
        answer = await self._calls.run(Call("manifest", Scope.pull(repo), send, _has_content, retries))
        try:
            return await manifest_in(answer, reference, self.name)
        except UpstreamError as error:
            self._hooks.on_failure(error)
            raise

    @asynccontextmanager
    async def blob(self, repo: str, digest: Digest, start: int = 0, stop: int | None = None) -> AsyncIterator[Body]:
        """GET a blob in a thread of the executor, with a range if `start` is above 0 or `stop` is given (see
        `Upstream`).

        Leaving the context closes the body; no thread may still read it. `abort` ends a read that blocks.
        """
        async with self._blobs, self._opened(repo, digest, start, stop) as body:
            yield body

    @asynccontextmanager
    async def _opened(
        self, repo: str, digest: Digest, start: int, stop: int | None, tries: int | None = None
    ) -> AsyncIterator[Body]:
        """Like `blob`, whose turn among the blobs under way the caller has. `tries`: see `Call`."""
        # whoever asks for a small part cannot use the whole
        expected = tries is None and self._whole_answers.expected
        if expected:
            body = await self._get_blob("blob", repo, digest, tries=tries)
        else:
            body = await self._get_blob("blob", repo, digest, start=start, stop=stop, tries=tries)
            if tries is not None and not start and is_whole(body, start, stop):
                # the part may have been refused because the address to which it was redirected had expired
                body.abort()
                body.close()
                body = await self._get_blob("blob", repo, digest, start=start, stop=stop, tries=tries)
        try:
            with closed_after(body):
                yield body
        except UpstreamUnavailable:
            if expected:
                self._whole_answers.broke_off()
            raise

    def parts(self, repo: str, digest: Digest) -> RegistryBlobParts:
        """See `Upstream`."""
        return RegistryBlobParts(
            self.name,
            self._blobs,
            partial(self._opened, repo, digest),
            partial(self._further, repo, digest),
            partial(self._calls.prepare, Scope.pull(repo)),
            self._most,
        )

    async def _further(self, repo: str, digest: Digest, start: int, stop: int, size: int) -> HttpBody:
        """See `BlobParts.further`; the caller has a turn, and closes the body."""
        url = self._url(repo, f"blobs/{digest}")

        async def send(passes: Passes) -> Answer:
            headers = self._headers(passes, Accept="*/*")
            return await self._blob_client.get(url, headers, passes.elsewhere, start=start, stop=stop, attempts=1)

        body = (await self._calls.once(Call("blob", Scope.pull(repo), send, _has_content, 0))).body
        if isinstance(body, HttpBody) and (body.start, body.size) == (start, size) and start < (body.stop or 0) <= stop:
            return body
        if body is not None:
            body.abort()
            body.close()
        raise self._endpoint.invalid("the answer to a request for a part is not that part")

    async def blob_size(self, repo: str, digest: Digest) -> int | None:
        """Determine the size by a GET of the first byte (see `Upstream`)."""
        async with self._blobs:
            body = await self._get_blob("blob_size", repo, digest, stop=1)
        body.close()
        return body.size

    async def _get_blob(
        self,
        event: str,
        repo: str,
        digest: Digest,
        *,
        start: int = 0,
        stop: int | None = None,
        tries: int | None = None,
    ) -> HttpBody | EncodedBody:
        url = self._url(repo, f"blobs/{digest}")

        async def send(passes: Passes) -> Answer:
            headers = self._headers(passes, Accept="*/*")
            return await self._blob_client.get(url, headers, passes.elsewhere, start=start, stop=stop)

        call = Call(event, Scope.pull(repo), send, _has_content, self._retries, tries=tries)
        answer = await self._calls.run(call)
        if answer.body is None:
            raise self._endpoint.invalid(f"status {answer.status} for a blob", answer.status)
        if is_whole(answer.body, start, stop):
            self._hooks.on_whole()
            answer.body.throttled = self._throttled_for(answer.instead_of)
            self._whole_answers.came(start, answer.body.throttled)
        return answer.body

    def _throttled_for(self, refusal: Answer | None) -> float | None:
        """The seconds for which a refusal asks to be left alone; None if it was no throttling."""
        after = None if refusal is None else refusal.fields.get("Retry-After")
        if refusal is None or not is_throttling(refusal.status, after):
            return None
        return throttle_seconds(parse_retry_after(after, self.clocks.now()), 1)

    def tags(self, repo: str, after: str = "") -> AsyncGenerator[TagBatch, None]:
        """List the tags page by page (`tag_list.py`; see `Upstream`)."""

        async def ask(query: str, page: PageFile) -> TagAnswer:
            url, read = self._url(repo, "tags/list", query), self._client.into(page)
            send = partial(self._send, "GET", url, "application/json", read)
            is_usable = _is_tags if query else _has_content
            answer = await self._calls.run(Call("tags", Scope.pull(repo), send, is_usable, self._retries))
            return TagAnswer(200 if answer.status in CONTENT else answer.status, answer.fields.getall("Link", ()))

        return self._tag_list.batches(ask, after)

    async def referrers(self, repo: str, digest: Digest) -> list[Descriptor]:
        """List referrers by the API, or by the fallback tag if there is no API (`referrers_api.py`; see `Upstream`)."""

        async def page(query: str, limit: int) -> ReferrersPage:
            return await self._referrers_page(repo, digest, query, limit)

        async def manifest(reference: Reference, limit: int) -> Manifest:
            return await self._manifest(repo, reference, limit, retries=self._retries)

        return await list_referrers(self._endpoint, repo, digest, page, manifest, self._children)

    async def _referrers_page(self, repo: str, digest: Digest, query: str, limit: int) -> ReferrersPage:
        def is_usable(answer: Answer) -> bool:
            elsewhere = not self._endpoint.is_at(answer.url)
            # a 401 may be the challenge of another registry that this one redirects to
            client_error = 400 <= answer.status < 500 and answer.status not in (401, 429)
            return answer.status == 200 or answer.status in LACKS_API or (elsewhere and client_error)

        url, read = self._url(repo, f"referrers/{digest}", query), self._client.whole(limit)
        send = partial(self._send, "GET", url, OCI_INDEX, read)
        try:
            answer = await self._calls.run(Call("referrers", Scope.pull(repo), send, is_usable, self._retries))
        except AnswerTooLarge:
            raise
        except (UpstreamInvalid, HostThrottled) as error:
            # a redirect to a forbidden address, or to a host that asked to be left alone
            raise NoReferrersApi from error
        if answer.status != 200:
            raise NoReferrersApi
        return ReferrersPage(answer.content, answer.fields.getall("Link", ()))

    async def check(self) -> str:
        """Check by GET of `/v2/` that the registry lets us in; return a text that says how. Raises like every call.

        Credentials are obtained even if the registry does not ask for them, so that a failing issuer is noticed.
        """
        credentials = await self._credentials.credentials()
        read, authorized = self._client.whole(LARGEST_ERROR), False

        async def send(passes: Passes) -> Answer:
            nonlocal authorized
            authorized = authorized or passes.own is not None
            answer = await self._send("GET", f"{self.url}/v2/", None, read, passes)
            date = parse_http_date(answer.fields.get("Date"))
            self.ahead = None if date is None else self.clocks.now() - date
            return answer

        try:
            await self._calls.run(Call("check", Scope(), send, _is_one_of(200), self._retries))
        except UpstreamDenied:
            if credentials is not None:
                raise
            return "answers; anonymous, so only public content"
        if credentials is None:
            return "answers; anonymous"
        return "answers; accepts the credentials" if authorized else "answers; did not ask for credentials"

    async def aclose(self) -> None:
        """Close the connections. Blobs that are being read stay open until their contexts are left. Repeatable."""
        await close_all(self._client.aclose, self._blob_client.close, self._credentials.aclose)

    async def _send(
        self, method: Literal["GET", "HEAD"], url: str, accept: str | None, read: ReadContent, passes: Passes
    ) -> Answer:
        headers = self._headers(passes, **{"Accept-Encoding": "identity"}, **({"Accept": accept} if accept else {}))
        async with self._small_calls:
            return await self._client.send(method, url, headers, read, passes.elsewhere)

    def _headers(self, passes: Passes, **more: str) -> dict[str, str]:
        authorization = {"Authorization": passes.own} if passes.own else {}
        return {**more, "User-Agent": self._endpoint.user_agent, **authorization}

    def _url(self, repo: str, path: str, query: str = "") -> str:
        return f"{self.url}/v2/{repo}/{path}{'?' if query else ''}{query}"

    def __repr__(self) -> str:
        return f"<RegistryUpstream {self.name} at {self._endpoint.bounds.base.public}>"


def _is_worth_a_get(error: UpstreamError) -> bool:
    """True if GET may succeed although HEAD failed with this error."""
    return isinstance(error, UpstreamUnavailable) and is_worth_a_get(error.status)
