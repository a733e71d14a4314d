"""One remote registry, accessed by the distribution API.

A call:

    admitted? ── throttled (429/503 said wait) or down (dials failed) ──> error at once, upstream is not contacted
        │
    send ──┬── 401: challenge learnt, one new token, sent again once ── 401 again ──> UpstreamDenied
           ├── 5xx, broken connection: at most 2 further tries, after a jittered wait
           ├── 429, 503 + Retry-After ──> UpstreamThrottled, also for every later call until the wait is over
           └── 2xx ──> checked, returned to the caller

Small answers are fetched with aiohttp (`http/client.py`), blobs with blocking sockets in threads (`http/blobs.py`).
HEAD is never sent for blobs: some registries answer it with 401 although they answer GET with a redirect.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from concurrent.futures import Executor
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal

import aiohttp
from yarl import URL

from mirror import telemetry
from mirror.aio.memo import Memo
from mirror.errors import (
    CredentialsRefused,
    DigestMismatch,
    UpstreamCircuitOpen,
    UpstreamDenied,
    UpstreamError,
    UpstreamInvalid,
    UpstreamNotFound,
    UpstreamThrottled,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from mirror.oci.challenge import Scope, parse_challenges
from mirror.oci.coding import decode
from mirror.oci.digest import Digest
from mirror.oci.manifest import (
    ACCEPT,
    LARGEST,
    OCI_INDEX,
    Descriptor,
    Manifest,
    ManifestMalformed,
)
from mirror.oci.reference import Reference
from mirror.policy.upstream.budget import Budget, is_spent, parse_budget, patience
from mirror.policy.upstream.heads import TO_BE_ASKED_BY_GET, is_worth_a_get, read_head
from mirror.policy.upstream.quoting import quoted
from mirror.policy.upstream.retrying import (
    CLOSED,
    Circuit,
    back_off,
    hold_for,
    is_throttling,
    is_worth_retrying,
    parse_http_date,
    parse_retry_after,
)
from mirror.policy.upstream.url_bounds import Url, UrlBounds, UrlRefused, parse_url, surviving_headers
from mirror.ports import Body, TagBatch
from mirror.upstream.credentials.source import CredentialSource, CredentialsUnavailable, GivenCredentials
from mirror.upstream.elsewhere import Elsewhere
from mirror.upstream.endpoint_health import Health, health_of
from mirror.upstream.http.body import EncodedBody, Fields, HttpBody
from mirror.upstream.http.client import AnswerTooLarge, Observe, open_session, read_limited, translated
from mirror.upstream.http.dialing import check_literal
from mirror.upstream.http.download import CONTENT, LARGEST_ERROR, REDIRECTS, Cancel, DialFailed, DialTimedOut, Transfer
from mirror.upstream.http.host_holds import HostHolds, HostThrottled
from mirror.upstream.http.page_file import ListBounds, PageFile
from mirror.upstream.http.proxies import DIRECT, Proxies
from mirror.upstream.login import NO_PASSES, Login, Passes
from mirror.upstream.manifest_answer import read_answer
from mirror.upstream.rate_limits import Accounts
from mirror.upstream.referrers_api import LACKS_API, FallbackChildren, NoReferrersApi, ReferrersPage, list_referrers
from mirror.upstream.tag_list import REFUSES_PAGING, TagAnswer, TagList
from mirror.upstream.tokens import TokenSource

_ACCEPT: Final = ", ".join(ACCEPT)
_RETRIES: Final = 2
#: Seconds until a call that is refused during a probe may be repeated, to see the result of the probe.
_WHILE_PROBING: Final = 0.25
#: A manifest of at most so many bytes is read on the event loop: that takes a millisecond or two.
_READ_AT_ONCE: Final = 64 * 1024
_SHOWN: Final = 200

_Method = Literal["GET", "HEAD"]


@dataclass(frozen=True, slots=True)
class _Reply:
    """An answer of either HTTP client. `body` is set only for a blob that was found; the caller closes it.

    `content` is without its `Content-Encoding`, `sent` is as upstream sent it.
    """

    status: int
    fields: Fields
    url: Url
    content: bytes
    body: HttpBody | EncodedBody | None = None
    sent: bytes = b""


#: Sends one request of a call.
_Send = Callable[[Passes], Awaitable[_Reply]]

#: True if the call can use the answer.
_Judge = Callable[[_Reply], bool]


def _is_one_of(*statuses: int) -> _Judge:
    return lambda reply: reply.status in statuses


_has_content: Final = _is_one_of(*CONTENT)
_is_head: Final = _is_one_of(200, *TO_BE_ASKED_BY_GET)
_is_tags: Final = _is_one_of(*CONTENT, *REFUSES_PAGING)


class RegistryUpstream:
    """An `Upstream` at a URL, which may have a path before `/v2/`.

    `executor` runs the blocking calls for blobs. `allowed` are hosts that may issue tokens, besides those of the
    registry's own site. `internal` permits this upstream, and the hosts it points to, to be on a private network; if it
    is None, the URL decides. `verify` is a TLS context, or says whether to check certificates at all. `identity` is a
    context with our client certificate, which is shown to the registry itself alone. `proxies` chooses the proxy for
    each URL.

    `retries` limits the further tries of one call if upstream answers 5xx or breaks off. Times are in seconds:
    `connect_timeout` for each dial, `answer_timeout` for a whole small answer and for the headers of a blob,
    `read_timeout` between two bytes of a blob. A blob slower than `lowest_rate` bytes a second over `rate_window` is
    given up. `blobs_at_once` and `calls_at_once` limit the blobs and the small calls under way at the same time.

    `now` gives epoch seconds, `clock` counts seconds; `sleep` and `jitter` serve the waits between tries. `observe` is
    called for each request, `on_budget` with the pulls that upstream still allows us, `on_failure` with the error of
    each call that failed after all tries, except `UpstreamNotFound`. `whose` gives the caller on whose behalf a call is
    made, "" for the mirror's own account. `lists` limits tag lists, and may be shared by several upstreams.

    Raises `UrlRefused` (a `ValueError`) for an invalid URL.
    """

    def __init__(
        self,
        name: str,
        url: str,
        *,
        executor: Executor,
        memo: Memo,
        credentials: CredentialSource | None = None,
        allowed: Iterable[str] = (),
        internal: bool | None = None,
        verify: bool | ssl.SSLContext = True,
        identity: ssl.SSLContext | None = None,
        proxies: Proxies = DIRECT,
        retries: int = _RETRIES,
        connect_timeout: float = 5.0,
        answer_timeout: float = 25.0,
        read_timeout: float = 30.0,
        lowest_rate: float = 1024.0,
        rate_window: float = 60.0,
        blobs_at_once: int = 32,
        calls_at_once: int = 64,
        user_agent: str = "registry-mirror",
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
        observe: Observe | None = None,
        on_budget: Callable[[Budget], None] = lambda budget: None,
        on_failure: Callable[[UpstreamError], None] = lambda error: None,
        whose: Callable[[], str] = lambda: "",
        lists: ListBounds | None = None,
    ) -> None:
        self._name = name
        self._base = url.rstrip("/")
        self._bounds = UrlBounds.of(self._base, allowed, internal=internal)
        where = self._bounds.base.authority
        #: For messages: the name, with the address if the name is not the address.
        self._whom = name if where == name else f"{name} ({where})"
        self._executor = executor
        self._verify = verify
        self._context: ssl.SSLContext | None = verify if isinstance(verify, ssl.SSLContext) else None
        self._identity = identity
        self._proxies = proxies
        self._retries = retries
        self._connect_timeout = connect_timeout
        self._answer_timeout = answer_timeout
        self._agent = user_agent
        self._now = now
        self._clock = clock
        self._sleep = sleep
        self._jitter = jitter
        self._observe: Observe = observe or (lambda event, status, seconds: None)
        self._blobs = asyncio.Semaphore(blobs_at_once)
        self._calls = asyncio.Semaphore(calls_at_once)
        self._opened: aiohttp.ClientSession | None = None
        self._credentials = credentials or GivenCredentials()

        def tokens(bounds: UrlBounds, credentials: CredentialSource) -> TokenSource:
            return TokenSource(
                name,
                bounds,
                self._session,
                credentials,
                memo,
                timeout=answer_timeout,
                proxies=proxies,
                now=lambda: self._now(),
                clock=lambda: self._clock(),
                observe=observe,
            )

        self._tokens = tokens(self._bounds, self._credentials)
        self._elsewhere = Elsewhere(name, self._bounds, memo, lambda bounds: tokens(bounds, GivenCredentials()))
        self._holds = HostHolds(name, lambda: self._clock())
        self._children = FallbackChildren()
        self._tag_list = TagList(name, lists or ListBounds())
        self._transfer = Transfer(
            name,
            self._bounds,
            tls=self._tls,
            identity=identity,
            proxies=proxies,
            connect_timeout=connect_timeout,
            answer_timeout=answer_timeout,
            read_timeout=read_timeout,
            lowest_rate=lowest_rate,
            rate_window=rate_window,
            clock=clock,
            holds=self._holds,
        )
        self._on_failure = on_failure
        self._ahead: float | None = None
        self._accounts = Accounts(
            name, self._bounds.base.public, memo, whose=whose, now=lambda: self._now(), on_budget=on_budget
        )
        self._circuit = CLOSED
        self._probing = False

    @property
    def name(self) -> str:
        """The registry's name, as clients write it."""
        return self._name

    @property
    def url(self) -> str:
        """The base URL, without a slash at its end."""
        return self._base

    @property
    def budget(self) -> Budget | None:
        """The pulls that upstream still allowed our own account at the last answer; None if it does not say."""
        return self._accounts.own.budget

    @property
    def ahead(self) -> float | None:
        """Seconds by which our clock is ahead of upstream's, as `check` measured; None if upstream sent no date."""
        return self._ahead

    @property
    def patience(self) -> float:
        """See `Upstream`."""
        return patience(self._accounts.current.budget, self._now())

    def health(self, *more: Circuit) -> list[Health]:
        """The health of this one address. `more` are circuits that others keep about it."""
        now = self._clock()
        logins = self._credentials.issuing, self._tokens.login
        return [health_of(self._base, (self._circuit, *more), self._accounts.own.held_until - now, now, logins)]

    async def resolve(self, repo: str, reference: Reference) -> Descriptor:
        """Resolve by HEAD, which never counts as a pull; by GET if HEAD fails or says too little (see `Upstream`).

        Raises `UpstreamThrottled` for a tag if no pulls are left: the manifest that it names could not be fetched.
        """
        by_tag = not isinstance(reference, Digest)
        if by_tag:
            await self._accounts.within_budget()
        path = f"manifests/{reference}"
        try:
            # one try fewer by HEAD, because the last try is by GET
            reply = await self._ask("resolve", repo, path, method="HEAD", fine=_is_head, retries=self._retries - 1)
        except UpstreamUnavailable as error:
            if not _may_be_had_by_get(error):
                raise
            return (await self._manifest(repo, reference, LARGEST, retries=0)).descriptor
        spent = by_tag and is_spent(self._accounts.current.budget, self._now())
        if reply.status == 404 and spent:
            raise self._unknown(reply)
        if spent:
            raise self._accounts.spent()
        if reply.status == 200 and (described := read_head(_described(reply), reference)):
            return described
        return (await self.manifest(repo, reference)).descriptor

    async def manifest(self, repo: str, reference: Reference) -> Manifest:
        """Fetch a manifest of at most 4 MiB and hash it before it is parsed (see `Upstream`). This counts as a pull."""
        return await self._manifest(repo, reference, LARGEST)

    async def _manifest(self, repo: str, reference: Reference, limit: int, *, retries: int | None = None) -> Manifest:
        await self._accounts.within_budget()
        reply = await self._ask("manifest", repo, f"manifests/{reference}", limit=limit, retries=retries)
        return await self._read_manifest(reply, reference)

    @asynccontextmanager
    async def blob(self, repo: str, digest: Digest, start: int = 0) -> AsyncIterator[Body]:
        """GET a blob in a thread of the executor, with a range if `start` is above 0 (see `Upstream`).

        Leaving the context closes the body; no thread may still read it. `abort` ends a read that blocks.
        """
        async with self._blobs:
            reply = await self._get_blob("blob", repo, digest, start=start)
            body = reply.body
            if body is None:
                raise self._invalid(f"status {reply.status} for a blob", reply.status)
            try:
                yield body
            except UpstreamInvalid:
                # the answer was invalid, so its end is not trusted either: the connection is not used again
                body.abort()
                raise
            finally:
                body.close()

    async def blob_size(self, repo: str, digest: Digest) -> int | None:
        """Determine the size by a GET of the first byte (see `Upstream`)."""
        async with self._blobs:
            reply = await self._get_blob("blob_size", repo, digest, only=1)
        if reply.body is None:
            raise self._invalid(f"status {reply.status} for a blob", reply.status)
        reply.body.close()
        return reply.body.size

    def tags(self, repo: str, after: str = "") -> AsyncGenerator[TagBatch, None]:
        """List the tags page by page (`tag_list.py`; see `Upstream`)."""

        async def ask(query: str, page: PageFile) -> TagAnswer:
            fine = _is_tags if query else _has_content
            reply = await self._ask(
                "tags", repo, "tags/list", accept="application/json", limit=page, query=query, fine=fine
            )
            return TagAnswer(200 if reply.status in CONTENT else reply.status, reply.fields.get_all("Link"))

        return self._tag_list.batches(ask, after)

    async def referrers(self, repo: str, digest: Digest) -> list[Descriptor]:
        """List referrers by the API, or by the fallback tag if there is no API (`referrers_api.py`; see `Upstream`)."""

        async def page(query: str, limit: int) -> ReferrersPage:
            return await self._referrers_page(repo, digest, query, limit)

        async def manifest(reference: Reference, limit: int) -> Manifest:
            return await self._manifest(repo, reference, limit)

        return await list_referrers(self._name, repo, digest, page, manifest, self._children)

    async def _referrers_page(self, repo: str, digest: Digest, query: str, limit: int) -> ReferrersPage:
        def is_told(reply: _Reply) -> bool:
            elsewhere = reply.url.origin != self._bounds.base.origin
            # a 401 may be the challenge of another registry that this one redirects to
            client_error = 400 <= reply.status < 500 and reply.status not in (401, 429)
            return reply.status == 200 or reply.status in LACKS_API or (elsewhere and client_error)

        try:
            reply = await self._ask(
                "referrers", repo, f"referrers/{digest}", accept=OCI_INDEX, limit=limit, query=query, fine=is_told
            )
        except AnswerTooLarge:
            raise
        except (UpstreamInvalid, HostThrottled) as error:
            # a redirect to a forbidden address, or to a host that asked to be left alone
            raise NoReferrersApi from error
        if reply.status != 200:
            raise NoReferrersApi
        return ReferrersPage(reply.content, reply.fields.get_all("Link"))

    async def check(self) -> str:
        """Check by GET of `/v2/` that the registry lets us in; return a text that says how. Raises like every call.

        Credentials are obtained even if the registry does not ask for them, so that a failing issuer is noticed.
        """
        credentials = await self._credentials.credentials()
        url, asked = f"{self._base}/v2/", False

        async def send(passes: Passes) -> _Reply:
            nonlocal asked
            asked = asked or passes.own is not None
            headers = {"Accept-Encoding": "identity", "User-Agent": self._agent}
            if passes.own:
                headers["Authorization"] = passes.own
            async with self._calls:
                reply = await self._fetch("GET", url, headers, LARGEST_ERROR, passes)
            date = parse_http_date(reply.fields.get("Date"))
            self._ahead = None if date is None else self._now() - date
            return reply

        try:
            await self._call("check", Scope(), send, _is_one_of(200))
        except UpstreamDenied:
            if credentials is not None:
                raise
            return "answers; anonymous, so only what it shows to everybody"
        if credentials is None:
            return "answers; anonymous"
        return "answers; lets us in with our credentials" if asked else "answers; did not ask for our credentials"

    async def aclose(self) -> None:
        """Close the connections. Blobs that are being read stay open until their contexts are left. Repeatable."""
        opened, self._opened = self._opened, None
        if opened is not None:
            await opened.close()
        self._transfer.close()
        await self._credentials.aclose()

    # ---------------------------------------------------------------------------------------------- small answers

    async def _ask(
        self,
        event: str,
        repo: str,
        path: str,
        *,
        method: _Method = "GET",
        accept: str = _ACCEPT,
        limit: int | PageFile = LARGEST,
        query: str = "",
        fine: _Judge = _has_content,
        retries: int | None = None,
    ) -> _Reply:
        """Make a call; return an answer of at most `limit` bytes, or with its body written into that `PageFile`.

        An answer that is not `fine` is raised as an error.
        """
        url = f"{self._base}/v2/{repo}/{path}{'?' if query else ''}{query}"

        async def send(passes: Passes) -> _Reply:
            headers = {"Accept": accept, "Accept-Encoding": "identity", "User-Agent": self._agent}
            if passes.own:
                headers["Authorization"] = passes.own
            async with self._calls:
                return await self._fetch(method, url, headers, limit, passes)

        return await self._call(event, Scope.pull(repo), send, fine, retries=retries)

    async def _fetch(
        self, method: _Method, text: str, headers: Mapping[str, str], limit: int | PageFile, passes: Passes = NO_PASSES
    ) -> _Reply:
        """Send a request and follow redirects, each of which is checked against the URL rules."""
        hops = 0
        url: Url | None = None
        most = LARGEST if isinstance(limit, PageFile) else limit
        try:
            async with translated(self._name, self._whom), asyncio.timeout(self._answer_timeout):
                url = parse_url(text)
                while True:
                    check_literal(self._bounds, url.host)
                    more = self._proxies.options(url)
                    if self._identity and url.origin == self._bounds.base.origin:
                        more["ssl"] = self._identity
                    async with self._session().request(
                        method,
                        URL(str(url), encoded=True),
                        headers={**headers, **self._proxies.headers(url)},
                        allow_redirects=False,
                        **more,
                    ) as response:
                        fields = Fields(response.headers.items())
                        if response.status not in REDIRECTS:
                            fine = response.status in CONTENT
                            if fine and isinstance(limit, PageFile):
                                content = await self._put_into(response, fields, limit)
                                return _Reply(response.status, fields, url, content, sent=content)
                            content = await read_limited(response, (most if fine else LARGEST_ERROR) + 1)
                            break
                    entered = self._bounds.next_hop(url, fields.get("Location"), hops)
                    headers = surviving_headers(headers, url, entered, passes.elsewhere)
                    url, hops = entered, hops + 1
                    self._holds.check(url)
        except UrlRefused as error:
            raise self._invalid(str(error)) from error
        except UpstreamError as error:
            error.elsewhere = url is not None and url.origin != self._bounds.base.origin
            raise
        plain = decode(content, fields.get("Content-Encoding"), most + 1) if fine else content
        if fine and max(len(content), len(plain)) > most:
            raise AnswerTooLarge(
                f"{self._name}: an answer of more than {most} bytes", upstream=self._name, status=response.status
            )
        return _Reply(response.status, fields, url, plain, sent=content)

    async def _put_into(self, response: aiohttp.ClientResponse, fields: Fields, page: PageFile) -> bytes:
        page.restart()
        async with aclosing(_pieces(response, fields.get("Content-Encoding"))) as pieces:
            async for piece in pieces:
                if not await page.write(piece):
                    response.close()
                    what = f"{self._name}: a tag list that is longer than tag_lists_max_size"
                    raise AnswerTooLarge(what, upstream=self._name, status=response.status)
        return b""

    async def _read_manifest(self, reply: _Reply, reference: Reference) -> Manifest:
        """The manifest in an answer. Raises `DigestMismatch`, `UpstreamInvalid`.

        A large manifest is hashed and parsed in a thread: thousands of descriptors would block the event loop.
        """
        fields = reply.fields
        read = partial(
            read_answer,
            (reply.content, reply.sent),
            fields.get("Content-Type"),
            fields.get("Docker-Content-Digest"),
            reference,
        )
        try:
            manifest = read() if len(reply.content) <= _READ_AT_ONCE else await asyncio.to_thread(read)
        except ManifestMalformed as error:
            invalid = self._invalid(f"not a manifest: {error}", reply.status)
            self._on_failure(invalid)
            raise invalid from error
        if manifest is None:
            mismatch = DigestMismatch(
                f"the manifest {reference} came as other bytes", upstream=self._name, status=reply.status
            )
            self._on_failure(mismatch)
            raise mismatch
        return manifest

    # -------------------------------------------------------------------------------------------------- blobs

    async def _get_blob(
        self, event: str, repo: str, digest: Digest, *, start: int = 0, only: int | None = None
    ) -> _Reply:
        url = f"{self._base}/v2/{repo}/blobs/{digest}"

        async def send(passes: Passes) -> _Reply:
            headers = {"Accept": "*/*", "User-Agent": self._agent}
            if passes.own:
                headers["Authorization"] = passes.own

            hangup = Cancel()

            def get() -> _Reply:
                answer = self._transfer.get(
                    url, headers, start=start, only=only, hangup=hangup, passes=passes.elsewhere
                )
                return _Reply(answer.status, answer.fields, answer.url, answer.content, answer.body)

            return await self._in_thread(get, hangup)

        return await self._call(event, Scope.pull(repo), send, _has_content)

    async def _in_thread(self, get: Callable[[], _Reply], hangup: Cancel) -> _Reply:
        """Run a blocking call. If the caller gives up, the call is ended and a body that it still returns is closed.

        Its own time-outs limit the call, except in the system's resolver, which cannot be ended: after a limit for the
        whole call, it is no longer waited for. Raises `UpstreamTimeout` then.
        """
        running = asyncio.get_running_loop().run_in_executor(self._executor, get)
        longest = 6 * (self._connect_timeout + self._answer_timeout)
        done, _ = await self._wait(running, longest, hangup)
        if not done:
            raise UpstreamTimeout("upstream did not answer in time", upstream=self._name)
        return running.result()

    async def _wait(self, running: asyncio.Future[_Reply], longest: float, hangup: Cancel) -> tuple[set[Any], set[Any]]:
        finished = False
        try:
            done, pending = await asyncio.wait({running}, timeout=longest)
            finished = bool(done)
            return done, pending
        finally:
            if not finished:
                hangup.now()
                running.add_done_callback(_close_unwanted)

    # ------------------------------------------------------------------------------------- what every call goes through

    async def _call(
        self,
        event: str,
        scope: Scope,
        send: _Send,
        fine: _Judge,
        *,
        retries: int | None = None,
    ) -> _Reply:
        try:
            return await self._call_at_last(event, scope, send, fine, self._retries if retries is None else retries)
        except UpstreamNotFound:
            raise
        except UpstreamError as error:
            if event != "resolve" or not _may_be_had_by_get(error):
                self._on_failure(error)
            raise

    async def _call_at_last(self, event: str, scope: Scope, send: _Send, fine: _Judge, retries: int) -> _Reply:
        """Send with admission, authorisation, retries and back-off, as drawn at the top of the file."""
        tries = 1
        login = Login(self._tokens, self._elsewhere, scope)
        while True:
            probing = self._admit()
            try:
                passes = await login.passes()
                reply = await self._observed(event, send, passes)
            except UpstreamUnavailable as error:
                self._note_failure(error)
                down = self._circuit.verdict(self._clock()).wait > 0
                late = isinstance(error, UpstreamTimeout | CredentialsUnavailable)
                if tries <= retries and not down and not late and is_worth_retrying(error.status):
                    await self._pause(tries)
                    tries += 1
                    continue
                raise
            except HostThrottled:
                raise
            except UpstreamThrottled as error:
                self._hold(error.retry_after)
                raise
            finally:
                self._probing = self._probing and not probing
            self._circuit = CLOSED
            await self._note_budget(reply)
            if reply.url.origin != self._bounds.base.origin and reply.status < 400:
                self._holds.forgive(reply.url)
            if fine(reply):
                self._accounts.current.strikes = 0
                if reply.status < 400 or reply.status == 404:
                    self._tokens.accepted(passes.own)
                return reply
            if reply.status == 401 and await self._is_let_in_now(login, reply, passes):
                continue
            failure = self._failure(reply, passes.own)
            failure.elsewhere = reply.url.origin != self._bounds.base.origin
            if tries <= retries and isinstance(failure, UpstreamUnavailable) and is_worth_retrying(failure.status):
                await self._pause(tries)
                tries += 1
                continue
            raise failure

    async def _observed(self, event: str, send: _Send, passes: Passes) -> _Reply:
        began, status = self._clock(), None
        try:
            with telemetry.client_span(f"upstream {event}", mirror__upstream=self._name) as span:
                reply = await send(passes)
                status = reply.status
                span.note(http__response__status_code=status, server__address=reply.url.host)
            return reply
        finally:
            self._observe(event, status, self._clock() - began)

    async def _note_budget(self, reply: _Reply) -> None:
        limit, remaining = reply.fields.get("RateLimit-Limit"), reply.fields.get("RateLimit-Remaining")
        budget = parse_budget(limit, remaining, self._now())
        if budget is None or reply.url.origin != self._bounds.base.origin:
            return
        await self._accounts.note_budget(budget)

    async def _pause(self, attempt: int) -> None:
        await self._sleep(back_off(attempt, self._jitter()))

    def _admit(self) -> bool:
        """True if this call is the probe of an upstream that was down.

        Raises `UpstreamThrottled`, `UpstreamCircuitOpen` if no call may be sent now.
        """
        held = self._accounts.current.held_until - self._clock()
        if held > 0:
            raise UpstreamThrottled(
                f"{self._whom} asked to be left alone for {held:.0f} s more", upstream=self._name, retry_after=held
            )
        verdict = self._circuit.verdict(self._clock())
        if verdict.wait or (verdict.probe and self._probing):
            raise UpstreamCircuitOpen(
                f"{self._whom} did not answer lately", upstream=self._name, retry_after=verdict.wait or _WHILE_PROBING
            )
        self._probing = self._probing or verdict.probe
        return verdict.probe

    def _note_failure(self, error: UpstreamUnavailable) -> None:
        # if the registry has answered with a redirect, it is not down
        if isinstance(error, DialFailed | DialTimedOut | UpstreamTimeout) and not error.elsewhere:
            self._circuit = self._circuit.failed(self._clock())

    def _hold(self, seconds: float) -> None:
        account = self._accounts.current
        account.held_until = max(account.held_until, self._clock() + seconds)

    async def _is_let_in_now(self, login: Login, reply: _Reply, passes: Passes) -> bool:
        """Learn from a 401. True if the request should be sent again."""
        challenges = parse_challenges(reply.fields.get_all("WWW-Authenticate"))
        if reply.url.origin == self._bounds.base.origin:
            return await login.challenged(passes, challenges)
        return await login.challenged_elsewhere(passes, reply.url, challenges)

    def _failure(self, reply: _Reply, authorization: str | None) -> UpstreamError:
        """The error for an answer by its status. A throttled account or host is held from now on."""
        status = reply.status
        elsewhere = reply.url.origin != self._bounds.base.origin
        retry_after = reply.fields.get("Retry-After")
        said = f"answers {status}{quoted(reply.content, authorization)}"
        what = f"{self._sender(reply)} {said}"
        if is_throttling(status, retry_after):
            seconds = parse_retry_after(retry_after, self._now())
            if elsewhere:
                wait = self._holds.hold(reply.url, seconds)
                return HostThrottled(what, upstream=self._name, status=status, retry_after=wait)
            account = self._accounts.current
            account.strikes += 1
            wait = hold_for(seconds, account.strikes)
            self._hold(wait)
            return UpstreamThrottled(what, upstream=self._name, status=status, retry_after=wait)
        if status == 404:
            return self._unknown(reply)
        if status >= 500 or (elsewhere and status in (400, 401, 403, 410)):
            # the redirect target refuses its URL: the signature may have expired, and the registry gives a new one
            return UpstreamUnavailable(what, upstream=self._name, status=None if status < 500 else status)
        if status == 401 and self._tokens.refused(authorization):
            return CredentialsRefused(what, upstream=self._name, status=status)
        if status in (401, 403):
            return UpstreamDenied(what, upstream=self._name, status=status)
        return self._invalid(f"{reply.url.authority} {said}", status)

    def _sender(self, reply: _Reply) -> str:
        """The other side, as messages name it: the registry's name, or the address of a host to which it redirected.

        The name shows the client that upstream refused the call, not the mirror.
        """
        return self._whom if reply.url.origin == self._bounds.base.origin else reply.url.authority

    def _unknown(self, reply: _Reply) -> UpstreamNotFound:
        what = f"{self._sender(reply)} does not know {reply.url.target.partition('?')[0][:_SHOWN]}"
        return UpstreamNotFound(what, upstream=self._name, status=404)

    def _invalid(self, message: str, status: int | None = None) -> UpstreamInvalid:
        return UpstreamInvalid(f"{self._name}: {message}", upstream=self._name, status=status)

    def _session(self) -> aiohttp.ClientSession:
        if self._opened is None:
            tls = self._tls() if self._bounds.base.scheme == "https" else self._context
            self._opened = open_session(
                self._bounds,
                tls,
                connect_timeout=self._connect_timeout,
                read_timeout=self._answer_timeout,
                proxies=self._proxies,
            )
        return self._opened

    def _tls(self) -> ssl.SSLContext:
        """The TLS context for all connections, created when it is first needed."""
        if self._context is None:
            self._context = ssl.create_default_context() if self._verify else unverified()
            self._context.set_alpn_protocols(["http/1.1"])
        return self._context

    def __repr__(self) -> str:
        return f"<RegistryUpstream {self._name} at {self._bounds.base.public}>"


def unverified() -> ssl.SSLContext:
    """A TLS context that checks no certificate, for a registry whose configuration says so."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _may_be_had_by_get(error: UpstreamError) -> bool:
    """True if GET may succeed although HEAD failed with this error."""
    return isinstance(error, UpstreamUnavailable) and is_worth_a_get(error.status)


def _described(reply: _Reply) -> dict[str, str | None]:
    return {name: reply.fields.get(name) for name in ("Content-Type", "Content-Length", "Docker-Content-Digest")}


async def _pieces(response: aiohttp.ClientResponse, coding: str | None) -> AsyncGenerator[bytes, None]:
    """The pieces of a body as they arrive. An encoded body is read whole, at most `LARGEST` bytes, and decoded."""
    if (coding or "identity").strip().lower() == "identity":
        async for piece in response.content.iter_any():
            yield piece
    else:
        yield decode(await read_limited(response, LARGEST), coding, 4 * LARGEST)


def _close_unwanted(done: asyncio.Future[_Reply]) -> None:
    if not done.cancelled() and done.exception() is None and (body := done.result().body):
        body.close()
