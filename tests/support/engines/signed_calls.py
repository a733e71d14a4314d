"""Calls of an S3 store that a mirror never makes: buckets, policies, lifecycle rules, other people's uploads.

Signed by hand (AWS signature version 4, "Create a signed request" in the IAM User Guide), so that what the tests see of
an engine does not depend on the library that is tested.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import parse_qsl, quote, urlsplit

#: The hash of a body that is not known when the head is signed.
UNSIGNED = "UNSIGNED-PAYLOAD"


@dataclass(frozen=True, slots=True)
class S3Answer:
    """Of one call."""

    status: int
    body: bytes
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class S3Keys:
    """Of one user of a store; their repr shows them, as they are good for nothing but an engine of the tests."""

    access: str
    secret: str
    region: str = "us-east-1"

    def sign(self, method: str, url: str, headers: Mapping[str, str], content_hash: str) -> dict[str, str]:
        """The headers of a request for this URL, `headers` among them; content_hash: hex SHA-256, or `UNSIGNED`."""
        parts = urlsplit(url)
        moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        fields = {name.lower(): value.strip() for name, value in headers.items()}
        fields |= {"host": parts.netloc, "x-amz-date": moment, "x-amz-content-sha256": content_hash}
        query = sorted(parse_qsl(parts.query, keep_blank_values=True))
        names = ";".join(sorted(fields))
        scope = f"{moment[:8]}/{self.region}/s3/aws4_request"
        canonical = "\n".join(
            (
                method,
                parts.path,
                "&".join(f"{quote(name, '~')}={quote(value, '~')}" for name, value in query),
                *(f"{name}:{fields[name]}" for name in sorted(fields)),
                "",
                names,
                content_hash,
            )
        )
        text = "\n".join(("AWS4-HMAC-SHA256", moment, scope, hashlib.sha256(canonical.encode()).hexdigest()))
        key = f"AWS4{self.secret}".encode()
        for part in scope.split("/"):
            key = hmac.digest(key, part.encode(), "sha256")
        signature = hmac.new(key, text.encode(), "sha256").hexdigest()
        fields["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={self.access}/{scope}, SignedHeaders={names}, Signature={signature}"
        )
        return fields


def call(
    endpoint: str, keys: S3Keys, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
) -> S3Answer:
    """One request on a connection of its own; `path` has the query, and both are encoded. Raises `OSError`."""
    parts = urlsplit(endpoint)
    signed = keys.sign(method, endpoint + path, headers or {}, hashlib.sha256(body).hexdigest())
    connection = http.client.HTTPConnection(parts.netloc, timeout=60)
    try:
        connection.request(method, path, body or (b"" if method in ("PUT", "POST") else None), signed)
        answer = connection.getresponse()
        return S3Answer(answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()})
    except http.client.HTTPException as error:
        raise OSError(f"{endpoint}: {error!r}") from error
    finally:
        connection.close()
