"""What the bucket of obstore is made of: what failures mean, keys in files, and when the library is loaded."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from obstore import exceptions

from mirror.store.cloud.clouds import AZURE, GOOGLE, S3
from mirror.store.cloud.key_files import KeyFiles, S3Keys
from mirror.store.cloud.obstore_errors import Kind, denied, failure_of
from mirror.store.cloud.request_sender import _Calls

_DUMP = "\n\nDebug source:\nGeneric {\n  uri: http://store/k?X-Amz-Signature=secret,\n  kind: %s, %s\n}"
_ANSWER = "Generic S3 error: Error performing PUT http://store:9000/b/k in 3ms - Server returned non-2xx status code: "


def _xml(code: str) -> str:
    return f'<?xml version="1.0"?>\n<Error><Code>{code}</Code><Message>m</Message></Error>'


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (FileNotFoundError(f"{_ANSWER}404 Not Found: {_xml('NoSuchKey')}"), Kind.ABSENT, "404 NoSuchKey"),
        (FileNotFoundError(f"{_ANSWER}404 Not Found: {_xml('NoSuchBucket')}"), Kind.NO_BUCKET, "404 NoSuchBucket"),
        (
            exceptions.GenericError(f"{_ANSWER}404 Not Found: {_xml('NoSuchBucket')}"),
            Kind.NO_BUCKET,
            "404 NoSuchBucket",
        ),
        (exceptions.AlreadyExistsError(f"{_ANSWER}412 Precondition Failed: "), Kind.CHANGED, "412 Precondition Failed"),
        (
            exceptions.AlreadyExistsError(f"{_ANSWER}409 Conflict: {_xml('ConditionalRequestConflict')}"),
            Kind.CONFLICT,
            "409 ConditionalRequestConflict",
        ),
        (
            exceptions.AlreadyExistsError(f"{_ANSWER}409 Conflict: {_xml('BlobAlreadyExists')}"),
            Kind.CHANGED,
            "409 Blob",
        ),
        (exceptions.NotModifiedError(f"{_ANSWER}304 Not Modified: "), Kind.NOT_CHANGED, "304 Not Modified"),
        (exceptions.PermissionDeniedError(f"{_ANSWER}403 Forbidden: {_xml('AccessDenied')}"), Kind.DENIED, "403 Acc"),
        (exceptions.GenericError(f"{_ANSWER}400 Bad Request: {_xml('ExpiredToken')}"), Kind.DENIED, "400 ExpiredToken"),
        (exceptions.GenericError(f"{_ANSWER}416 Range Not Satisfiable: "), Kind.BEYOND, "416 Range Not Satisfiable"),
        (
            exceptions.GenericError("Generic MicrosoftAzure error: Wanted range starting at 5, but object was only 5"),
            Kind.BEYOND,
            "Generic MicrosoftAzure error: Wanted range",
        ),
        (exceptions.GenericError(f"{_ANSWER}503 Slow Down: "), Kind.THROTTLED, "503 Slow Down"),
        (exceptions.GenericError(f"{_ANSWER}429 Too Many Requests: "), Kind.THROTTLED, "429 Too Many Requests"),
        (
            exceptions.GenericError(f"{_ANSWER}500 Internal Server Error: "),
            Kind.UNAVAILABLE,
            "500 Internal Server Error",
        ),
        (exceptions.GenericError(f"{_ANSWER}400 Bad Request: {_xml('BadDigest')}"), Kind.UNAVAILABLE, "400 BadDigest"),
        (
            exceptions.GenericError(f"{_ANSWER}400 Bad Request: {_xml('InvalidArgument')}"),
            Kind.INVALID,
            "400 InvalidArg",
        ),
        (
            exceptions.GenericError(
                "Generic S3 error: Error performing GET http://store:9000/b/k in 3ms - HTTP error: sending request"
                + _DUMP % ("Connect", "ConnectionRefused")
            ),
            Kind.UNAVAILABLE,
            "store:9000: the connection is refused",
        ),
        (
            exceptions.GenericError("Generic S3 error: HTTP error: body error" + _DUMP % ("Timeout", "TimedOut")),
            Kind.TIMEOUT,
            "no answer in time",
        ),
        (
            exceptions.GenericError(
                "Generic S3 error: Error performing GET http://store/b/k in 3ms - HTTP error: builder error\n"
            ),
            Kind.INVALID,
            "store: http:// is not allowed",
        ),
        (
            exceptions.UnauthenticatedError(
                "no valid credentials for https://store/k?sig=secret: x" + _DUMP % ("a", "b")
            ),
            Kind.DENIED,
            "no valid credentials for …",
        ),
        (exceptions.GenericError("Generic S3 error: Failed to read token file '/x'"), Kind.DENIED, "there are no cred"),
        (
            exceptions.GenericError("Bulk delete request failed for key a/b: not authorized. (code: 403)"),
            Kind.DENIED,
            "403",
        ),
        (exceptions.GenericError("DeleteObjects request failed for key a: x (code: AccessDenied)"), Kind.DENIED, "Acc"),
        (exceptions.GenericError("DeleteObjects request failed for key a: x (code: SlowDown)"), Kind.THROTTLED, "Slow"),
        (exceptions.GenericError("DeleteObjects request failed for key a: x (code: Other)"), Kind.UNAVAILABLE, "Other"),
        (
            exceptions.GenericError(f"{_ANSWER}500 Internal Server Error: {_xml('UnknownError')}"),
            Kind.CONFLICT,
            "500 UnknownError",
        ),
        (
            exceptions.GenericError("Generic S3 error: Received non-partial response when range requested"),
            Kind.INVALID,
            "it sends the whole object",
        ),
        (exceptions.GenericError("something new"), Kind.UNAVAILABLE, "something new"),
    ],
)
def test_what_failures_mean(error: Exception, kind: Kind, reason: str) -> None:
    """By class, status, code and text; the reason is short, and has no secret of a URL or an answer."""
    failure = failure_of(error)
    assert failure.kind is kind
    assert failure.reason.startswith(reason), failure.reason
    assert "secret" not in failure.reason
    assert "\n" not in failure.reason


@pytest.mark.parametrize(
    ("reason", "permission", "wrong", "says"),
    [
        ("403 AccessDenied", "s3:PutObject", False, "it takes s3:PutObject"),
        ("403 SignatureDoesNotMatch", "s3:PutObject", True, "the secret key does not belong to the access key"),
        ("403 RequestTimeTooSkewed", "s3:PutObject", True, "clock"),
        ("403 AccessDenied", "", False, "the credentials are wrong, or may not do that"),
    ],
)
def test_what_refusals_are_about(reason: str, permission: str, wrong: bool, says: str) -> None:
    """No permission is named where the credentials themselves are wrong."""
    error = denied("b refuses to write", reason, permission)
    assert str(error).startswith(f"b refuses to write ({reason}): ")
    assert says in str(error)
    assert error.wrong_credentials is wrong
    assert not wrong or "PutObject" not in str(error)


def test_a_request_that_was_never_sent_is_not_in_doubt() -> None:
    """Without a connection the store cannot have done anything."""
    connect = exceptions.GenericError("HTTP error: error sending request" + _DUMP % ("Connect", "ConnectionRefused"))
    cut = exceptions.GenericError("HTTP error: error sending request" + _DUMP % ("Request", "IncompleteMessage"))
    assert not failure_of(connect).sent
    assert failure_of(cut).sent


def test_versions_as_each_store_wants_them() -> None:
    """Entity tags with quotes, or bare where the store wants that; generations beside them where there are such."""
    assert S3.version("abc", None) == S3.version('"abc"', None) == '"abc"'
    assert S3.expected(S3.version('"abc"', None), bare=False) == {"e_tag": '"abc"'}
    assert S3.expected(S3.version('"abc"', None), bare=True) == {"e_tag": "abc"}
    assert AZURE.version("", None) == ""
    version = GOOGLE.version('"abc"', "17")
    assert GOOGLE.expected(version, bare=False) == {"version": "17", "e_tag": '"abc"'}
    assert GOOGLE.e_tag(version) == '"abc"'
    assert GOOGLE.version('"abc"', None) == ""


def test_keys_in_files_are_read_again(tmp_path: Path) -> None:
    """What is not in a file stays; a file that is gone, empty or no text changes nothing."""
    secret = tmp_path / "secret"
    moment = datetime(2030, 1, 1, tzinfo=UTC)
    keys = KeyFiles(S3Keys("AKIA", "first", "token"), {"secret_key": secret}, now=lambda: moment)
    assert keys.keys().secret_key == "first"
    for content, expected in ((b"second\n", "second"), (b"", "second"), (b"\xff", "second"), (b"third", "third")):
        secret.write_bytes(content)
        assert keys.keys() == S3Keys("AKIA", expected, "token")
    secret.unlink()
    credential = keys()
    assert credential["secret_access_key"] == "third"
    assert credential["expires_at"] is not None
    assert credential["expires_at"] > moment
    assert "third" not in repr(keys) + repr(keys.keys())
    fixed = KeyFiles(S3Keys("AKIA", "first"), {})
    assert fixed()["expires_at"] is None


def test_without_a_bucket_the_library_is_not_loaded() -> None:
    """Neither by a server nor by a command: it costs memory and time."""
    script = (
        "import sys, importlib, pkgutil, mirror.app.building, mirror.cli, mirror.process.worker\n"
        "from mirror.config import load\n"
        "from mirror.app.bucket import open_bucket\n"
        "assert open_bucket(load(None)) is None\n"
        "sys.exit('obstore' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_calls_at_once_are_limited() -> None:
    """A thread that is in a call may make another one within it; others are refused after a while."""
    calls = _Calls(1)
    assert calls.enter(0.0)
    assert calls.enter(0.0)
    with ThreadPoolExecutor(1) as threads:
        assert not threads.submit(calls.enter, 0.01).result()
        calls.leave()
        assert not threads.submit(calls.enter, 0.01).result()
        calls.leave()
        assert threads.submit(calls.enter, 0.01).result()
