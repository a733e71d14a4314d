"""Requests to S3 for which obstore has no call, signed here (AWS signature version 4, "Authenticating Requests").

Used rarely, and never while a client waits: to find and abort unfinished uploads, and to try whether the store refuses
a wrong checksum.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import ssl
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from http.client import HTTPException
from typing import Final
from urllib.parse import quote, urlsplit

from mirror.errors import BucketUnavailable, reason_of
from mirror.store.cloud.key_files import S3Keys
from mirror.store.cloud.obstore_errors import denied
from mirror.store.cloud.s3_xml import text_of
from mirror.store.cloud.timed_requests import TimedRequests, succeeded

#: No answer is read beyond so many bytes: a page of a listing has at most 1,000 entries.
_LONGEST: Final = 8 << 20
#: Seconds for a page of a listing at least, as for those of objects.
_LONGEST_PAGE: Final = 60.0
_UNSIGNED: Final = "UNSIGNED-PAYLOAD"


@dataclass(frozen=True, slots=True)
class UnfinishedUpload:
    """An upload in parts that was neither completed nor aborted; `begun_at` in epoch seconds."""

    key: str
    upload_id: str
    begun_at: float


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """Status and body of an answer, whatever the status."""

    status: int
    content: bytes

    @property
    def reason(self) -> str:
        """The status and the store's own code."""
        code = re.search(rb"<Code>(\w{1,60})</Code>", self.content)
        return f"{self.status} {code[1].decode()}" if code else str(self.status)


class RawS3:
    """Signs requests to one bucket; `prefix` is that of all keys, empty or with a slash at its end."""

    def __init__(
        self,
        url: str,
        prefix: str,
        region: str,
        keys: Callable[[], S3Keys | None],
        *,
        ca: str | None = None,
        proxies: Mapping[str, str] | None = None,
        timeout: float = 15.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`url` is that of the bucket: `https://host/bucket` or `https://bucket.host`. `keys` returns None if there are
        none now. `ca` has certificates (PEM). `proxies` by scheme; None: those of the environment. `timeout` is for one
        request in all, by `now`, in seconds.
        """
        self._url = url.rstrip("/")
        self._prefix = prefix
        self._region = region
        self._keys = keys
        self._timeout = timeout
        context = ssl.create_default_context()
        if ca is not None:
            context.load_verify_locations(cadata=ca)
        self._requests = TimedRequests(context=context, proxies=proxies, now=now)

    def __repr__(self) -> str:
        return f"<RawS3 {self._url}>"

    def call(
        self,
        method: str,
        key: str,
        query: Mapping[str, str] | None = None,
        content: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        sign_content: bool = True,
        limit: float | None = None,
    ) -> RawAnswer:
        """Send one request for a key within the prefix; an empty key means the bucket. Blocks for `limit` seconds at
        most; None: for the time-out.

        Raises `BucketUnavailable` if there is no answer, or one that asks to come again later, or there are no keys.
        """
        parts = urlsplit(self._url)
        path = parts.path + (f"/{quote(self._prefix + key, safe='/~')}" if key else "/")
        pairs = sorted((quote(name, "~"), quote(value, "~")) for name, value in (query or {}).items())
        line = "&".join(f"{name}={value}" for name, value in pairs)
        hashed = hashlib.sha256(content).hexdigest() if sign_content else _UNSIGNED
        signed = self._signed(method, parts.netloc, path, line, hashed, headers or {})
        request = urllib.request.Request(  # noqa: S310 - the scheme is http or https, as configured
            f"{parts.scheme}://{parts.netloc}{path}" + (f"?{line}" if line else ""),
            content if method in ("PUT", "POST") else None,
            signed,
            method=method,
        )
        try:
            limit = self._timeout if limit is None else limit
            answer = self._requests.ask(request, limit, _LONGEST, stall=self._timeout)
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            words = reason_of(reason) if isinstance(reason, Exception) else str(reason)
            raise BucketUnavailable(f"the bucket does not answer: {words[:160]}") from error
        found = RawAnswer(answer.status, answer.content)
        if found.status >= 500 or found.status == 429:
            raise BucketUnavailable(f"the bucket answers {found.reason}")
        return found

    def request_for(self, key: str, headers: Mapping[str, str]) -> tuple[str, int, bytes]:
        """The host and port to connect to for a GET of an object, and the request. Raises `BucketUnavailable`."""
        parts = urlsplit(self._url)
        path = f"{parts.path}/{quote(self._prefix + key, safe='/~')}"
        signed = self._signed("GET", parts.netloc, path, "", hashlib.sha256(b"").hexdigest(), headers)
        # the side that closes first has to remember the connection for a minute
        lines = [f"GET {path} HTTP/1.1", f"host: {parts.netloc}", "connection: close"]
        lines += [f"{name}: {value}" for name, value in signed.items()]
        return parts.hostname or "", parts.port or 80, ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def ask(self, request: urllib.request.Request) -> bytes:
        """The body of the answer to a request that somebody else has made, sent the same way. Raises `OSError`,
        `HTTPException`.
        """
        return succeeded(self._requests.ask(request, self._timeout, _LONGEST))

    def unfinished(self, prefix: str) -> Iterator[UnfinishedUpload] | None:
        """The unfinished uploads below a prefix. None if the store does not list them, or there are no keys.

        Raises `BucketUnavailable`, `BucketDenied`, also while it is iterated.
        """
        if self._keys() is None:
            return None
        first = self._page(prefix, {})
        return None if first is None else self._pages(prefix, first)

    def _pages(self, prefix: str, page: str) -> Iterator[UnfinishedUpload]:
        while True:
            for entry in re.findall(r"<Upload>(.*?)</Upload>", page, re.DOTALL):
                key, upload_id, begun = (text_of(entry, tag) for tag in ("Key", "UploadId", "Initiated"))
                if key.startswith(self._prefix):
                    yield UnfinishedUpload(key.removeprefix(self._prefix), upload_id, _seconds(begun))
            markers = {
                "key-marker": text_of(page, "NextKeyMarker"),
                "upload-id-marker": text_of(page, "NextUploadIdMarker"),
            }
            if text_of(page, "IsTruncated") != "true" or not markers["key-marker"]:
                return
            following = self._page(prefix, markers)
            if following is None:
                return
            page = following

    def _page(self, prefix: str, markers: Mapping[str, str]) -> str | None:
        query = {"uploads": "", "prefix": self._prefix + prefix, **markers}
        answer = self.call("GET", "", query, limit=max(self._timeout, _LONGEST_PAGE))
        if answer.status in (401, 403):
            what = "the bucket refuses to list unfinished uploads"
            raise denied(what, answer.reason, "s3:ListBucketMultipartUploads")
        text = answer.content.decode(errors="replace")
        return text if answer.status == 200 and "ListMultipartUploadsResult" in text else None

    def begin(self, key: str) -> UnfinishedUpload:
        """Begin an upload in parts. Raises `BucketUnavailable`, `BucketDenied`."""
        answer = self.call("POST", key, {"uploads": ""})
        upload_id = text_of(answer.content.decode(errors="replace"), "UploadId")
        if answer.status != 200 or not upload_id:
            raise _refused("begin an upload", answer, "s3:PutObject")
        return UnfinishedUpload(key, upload_id, time.time())

    def abort(self, upload: UnfinishedUpload) -> None:
        """Abort an upload; one that is gone is no error. Raises `BucketUnavailable`, `BucketDenied`."""
        answer = self.call("DELETE", upload.key, {"uploadId": upload.upload_id})
        if answer.status not in (200, 204, 404):
            raise _refused("abort an upload", answer, "s3:AbortMultipartUpload")

    def refuses_wrong_checksum(self, key: str) -> bool:
        """Whether the store refuses bytes that do not match their CRC64NVME, if nothing else protects them. Leaves an
        object at `key` if not. Raises `BucketUnavailable`.
        """
        answer = self.call(
            "PUT", key, content=b"probe", headers={"x-amz-checksum-crc64nvme": "AAAAAAAAAAA="}, sign_content=False
        )
        return answer.status == 400

    def has_rule_for_uploads(self) -> bool | None:
        """Whether a lifecycle rule of the bucket aborts unfinished uploads. None: this store, or the lack of
        `s3:GetLifecycleConfiguration`, does not let it be said.
        """
        answer = self.call("GET", "", {"lifecycle": ""})
        if answer.status == 200:
            return b"AbortIncompleteMultipartUpload" in answer.content
        return False if b"NoSuchLifecycleConfiguration" in answer.content else None

    def _signed(
        self, method: str, host: str, path: str, query: str, hashed: str, headers: Mapping[str, str]
    ) -> dict[str, str]:
        if (keys := self._keys()) is None:
            raise BucketUnavailable("there are no keys to sign a request with")
        moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        scope = f"{moment[:8]}/{self._region}/s3/aws4_request"
        sent = {name.lower(): value.strip() for name, value in headers.items()}
        sent |= {"x-amz-date": moment, "x-amz-content-sha256": hashed}
        if keys.token:
            sent["x-amz-security-token"] = keys.token
        signed = {**sent, "host": host}
        names = ";".join(sorted(signed))
        lines = [f"{name}:{signed[name]}" for name in sorted(signed)]
        canonical = "\n".join([method, path, query, *lines, "", names, hashed])
        to_sign = f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        key = b"AWS4" + keys.secret_key.encode()
        for part in (moment[:8], self._region, "s3", "aws4_request", to_sign):
            key = hmac.new(key, part.encode(), "sha256").digest()
        sent["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={keys.access_key}/{scope}, SignedHeaders={names}, Signature={key.hex()}"
        )
        return sent


def _refused(what: str, answer: RawAnswer, permission: str) -> BucketUnavailable:
    """The error for an answer: only some are about permissions."""
    if answer.status in (401, 403):
        return denied(f"the bucket refuses to {what}", answer.reason, permission)
    return BucketUnavailable(f"the bucket failed to {what}: {answer.reason}")


def _seconds(moment: str) -> float:
    """Epoch seconds of a time as S3 writes it. An upload whose time cannot be read counts as just begun."""
    try:
        return datetime.fromisoformat(moment.replace("Z", "+00:00")).timestamp()
    except ValueError:
        return time.time()
