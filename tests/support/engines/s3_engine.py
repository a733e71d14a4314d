"""What the S3 engines have in common: a bucket, its users, and calls beside the mirror."""

from __future__ import annotations

import contextlib
from typing import Final

from tests.support.engines.access import BucketAccess
from tests.support.engines.signed_calls import S3Answer, S3Keys, call
from tests.support.process import ProgramProcess, eventually

#: Made in every engine.
BUCKET: Final = "mirror"

#: Who may do everything, and who may read and list alone.
OWNER: Final = S3Keys("mirrorkey", "mirrorsecret")
READER: Final = S3Keys("readerkey", "readersecret")


class S3Engine:
    """A store that runs at `endpoint`, a URL without a slash at its end."""

    name: str
    endpoint: str

    @property
    def access(self) -> BucketAccess:
        """Of the owner."""
        return self._access(OWNER)

    @property
    def read_only(self) -> BucketAccess:
        """Of a user who may read and list, and no more."""
        return self._access(READER)

    def _access(self, keys: S3Keys) -> BucketAccess:
        settings = {
            "endpoint": self.endpoint,
            "allow_http": True,
            "region": keys.region,
            "access_key": keys.access,
            "secret_key": keys.secret,
        }
        return BucketAccess(f"s3://{BUCKET}", settings)

    def call(self, method: str, path: str, body: bytes = b"", *, keys: S3Keys = OWNER) -> S3Answer:
        """One signed request; `path` begins with the bucket."""
        return call(self.endpoint, keys, method, path, body)

    def object(self, key: str) -> bytes | None:
        """The bytes of an object, past the mirror. None: there is no such object."""
        answer = self.call("GET", f"/{BUCKET}/{key}")
        assert answer.status in (200, 404), answer
        return answer.body if answer.status == 200 else None

    def put_object(self, key: str, content: bytes) -> None:
        """Replace or make an object, past the mirror."""
        answer = self.call("PUT", f"/{BUCKET}/{key}", content)
        assert answer.status == 200, answer

    def delete_object(self, key: str) -> None:
        """Delete an object, past the mirror."""
        answer = self.call("DELETE", f"/{BUCKET}/{key}")
        assert answer.status == 204, answer

    def make_bucket(self, process: ProgramProcess) -> None:
        """Returns when the bucket takes a small object and gives it back: some engines answer before they can."""
        eventually(lambda: self._takes(process), f"{self.name} takes objects")

    def _takes(self, process: ProgramProcess) -> bool:
        if not process.running:
            process.wait_for(lambda _: None, "a good write", since=len(process.lines))
        with contextlib.suppress(OSError):
            made = self.call("PUT", f"/{BUCKET}")
            if made.status not in (200, 409):
                return False
            put = self.call("PUT", f"/{BUCKET}/started", b"here")
            return put.status == 200 and self.call("GET", f"/{BUCKET}/started").body == b"here"
        return False
