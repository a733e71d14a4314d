"""Google Cloud Storage's XML interface, translated to an S3 engine behind it.

What Google's own does and this checks: service accounts by the JWT that they sign themselves, signed URLs, and writes
that expect a generation. Each write gives an object a new generation, also a write of the same content.

    GcsFront(engine, folder) ── thread with an event loop, from `with` on ── ends with it
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from urllib.parse import parse_qsl, quote, unquote

import jwt
from aiohttp import ClientSession, ClientTimeout, TCPConnector, web
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from yarl import URL

from tests.support.engines.access import BucketAccess
from tests.support.engines.s3_engine import BUCKET, OWNER, S3Engine
from tests.support.engines.signed_calls import UNSIGNED

OWNER_MAIL: Final = "owner@mirror.iam.gserviceaccount.com"
READER_MAIL: Final = "reader@mirror.iam.gserviceaccount.com"

#: Where an object's generation lies in the S3 engine.
_GENERATION: Final = "x-amz-meta-generation"

_ASKED: Final = frozenset(
    ("range", "content-type", "content-length", "cache-control", "if-match", "if-none-match", "if-modified-since")
)
_ANSWERED: Final = frozenset(
    ("content-type", "content-length", "content-range", "etag", "last-modified", "cache-control", "accept-ranges")
)


class GcsFront:
    """In front of the bucket of `engine`; the keys of the service accounts lie below `folder`."""

    name = "gcs"

    def __init__(self, engine: S3Engine, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._engine = engine
        self._folder = folder
        self._keys: dict[str, rsa.RSAPrivateKey] = {}
        self._generations = itertools.count(time.time_ns() // 1000)
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="gcs-front", daemon=True)
        self.port = 0

    @property
    def endpoint(self) -> str:
        """Without a slash at its end."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def access(self) -> BucketAccess:
        """Of the owner."""
        return self._access(OWNER_MAIL)

    @property
    def read_only(self) -> BucketAccess:
        """Of a service account that may read and list, and no more."""
        return self._access(READER_MAIL)

    def _access(self, mail: str) -> BucketAccess:
        key = self._keys.setdefault(mail, rsa.generate_private_key(65537, 2048))
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        account = {
            "type": "service_account",
            "client_email": mail,
            "private_key_id": mail,
            "private_key": pem.decode(),
            "gcs_base_url": self.endpoint,
            "disable_oauth": False,
        }
        file = self._folder / f"{mail.partition('@')[0]}.json"
        file.write_text(json.dumps(account))
        return BucketAccess(f"gs://{BUCKET}", {"credentials_file": str(file), "allow_http": True})

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> None:
        self._http = ClientSession(
            timeout=ClientTimeout(None),
            connector=TCPConnector(limit=0),
            auto_decompress=False,
            skip_auto_headers=("Content-Type", "User-Agent"),
        )
        app = web.Application(client_max_size=1 << 40)
        app.router.add_route("*", "/{tail:.*}", self._handle)
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = int(self._runner.addresses[0][1])

    async def _stop(self) -> None:
        await self._runner.cleanup()
        await self._http.close()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        caller = self._caller(request)
        if caller is None:
            return _refusal(401, "AuthenticationRequired")
        if caller == READER_MAIL and request.method not in ("GET", "HEAD"):
            return _refusal(403, "AccessDenied")
        if request.method in ("GET", "HEAD") or "partNumber" in request.query:
            return await self._forward(request, {})
        async with self._locks[request.path]:
            return await self._write(request)

    async def _write(self, request: web.Request) -> web.StreamResponse:
        """Nothing else changes the object meanwhile: this front is the only way to it."""
        expected = request.headers.get("x-goog-if-generation-match")
        if expected is not None:
            url = URL(self._engine.endpoint + _path(request), encoded=True)
            async with self._http.head(url, headers=self._signed("HEAD", url, {})) as found:
                if found.status not in (200, 404):
                    return _refusal(503, "ServiceUnavailable")
                if found.headers.get(_GENERATION, "0") != expected:
                    return _refusal(412, "PreconditionFailed")
        more = {}
        if request.method == "PUT" or "uploads" in request.query:
            more[_GENERATION] = str(next(self._generations))
        return await self._forward(request, more)

    async def _forward(self, request: web.Request, more: Mapping[str, str]) -> web.StreamResponse:
        url = URL(self._engine.endpoint + _path(request) + _query(request), encoded=True)
        headers = {name.lower(): value for name, value in request.headers.items() if name.lower() in _ASKED}
        headers |= {
            f"x-amz-{name[7:].lower()}": value
            for name, value in request.headers.items()
            if name.lower().startswith("x-goog-meta-")
        }
        headers |= more
        body = request.content if request.method in ("PUT", "POST") else None
        signed = self._signed(request.method, url, headers)
        async with self._http.request(request.method, url, headers=signed, data=body) as answer:
            told = web.StreamResponse(status=answer.status, reason=answer.reason)
            for name, value in answer.headers.items():
                if name.lower() in _ANSWERED:
                    told.headers[name] = value
                elif name.lower().startswith("x-amz-meta-") and name.lower() != _GENERATION:
                    told.headers[f"x-goog-{name[6:]}"] = value
            generation = more.get(_GENERATION) or answer.headers.get(_GENERATION)
            if generation:
                told.headers["x-goog-generation"] = generation
            await told.prepare(request)
            if request.method != "HEAD":
                async for piece in answer.content.iter_any():
                    await told.write(piece)
            await told.write_eof()
            return told

    def _signed(self, method: str, url: URL, headers: Mapping[str, str]) -> dict[str, str]:
        return OWNER.sign(method, str(url), headers, UNSIGNED)

    def _caller(self, request: web.Request) -> str | None:
        """The service account that sent the request or signed its URL. None: nobody that is known here."""
        kind, _, token = request.headers.get("Authorization", "").partition(" ")
        if kind == "Bearer":
            for mail, key in self._keys.items():
                try:
                    claims = jwt.decode(token, key.public_key(), algorithms=["RS256"], options={"verify_aud": False})
                except jwt.PyJWTError:
                    continue
                return mail if claims["iss"] == mail else None
        return self._signer(request)

    def _signer(self, request: web.Request) -> str | None:
        """Of a signed URL ("V4 signing process"): its account, if the signature is right and has not expired."""
        query = request.query
        mail = query.get("X-Goog-Credential", "").partition("/")[0]
        key = self._keys.get(mail)
        if key is None or query.get("X-Goog-Algorithm") != "GOOG4-RSA-SHA256":
            return None
        moment, scope = query["X-Goog-Date"], query["X-Goog-Credential"].partition("/")[2]
        names = query["X-Goog-SignedHeaders"]
        # what obstore signs, whatever the endpoint is
        headers = {**request.headers, "host": "storage.googleapis.com"}
        fields = "".join(f"{name}:{headers[name].strip()}\n" for name in names.split(";"))
        signed = "&".join(
            f"{quote(name, '~')}={quote(value, '~')}"
            for name, value in sorted(query.items())
            if name != "X-Goog-Signature"
        )
        path = request.raw_path.partition("?")[0]
        canonical = "\n".join((request.method, path, signed, fields, names, UNSIGNED))
        text = "\n".join(("GOOG4-RSA-SHA256", moment, scope, hashlib.sha256(canonical.encode()).hexdigest()))
        try:
            signature = bytes.fromhex(query["X-Goog-Signature"])
            key.public_key().verify(signature, text.encode(), padding.PKCS1v15(), hashes.SHA256())
        except InvalidSignature:
            return None
        begun = time.mktime(time.strptime(moment, "%Y%m%dT%H%M%SZ")) - time.timezone
        return mail if time.time() < begun + int(query["X-Goog-Expires"]) else None


def _path(request: web.Request) -> str:
    """As S3 signs it: slashes of keys are not encoded, which is optional in GCS."""
    return quote(unquote(request.raw_path.partition("?")[0]), "/~")


def _query(request: web.Request) -> str:
    """Without the parts of a signed URL."""
    kept = [
        f"{quote(name, '~')}={quote(value, '~')}"
        for name, value in parse_qsl(request.raw_path.partition("?")[2], keep_blank_values=True)
        if not name.startswith("X-Goog-")
    ]
    return f"?{'&'.join(kept)}" if kept else ""


def _refusal(status: int, code: str) -> web.Response:
    text = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{code}</Message></Error>'
    return web.Response(status=status, text=text, content_type="application/xml")
