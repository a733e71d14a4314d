"""A prefix of an engine's bucket, as its operator sees it: past the mirrors, and past what is between."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from urllib.parse import quote, unquote

from mirror.ports import PROBES
from tests.support.engines.s3_engine import BUCKET, S3Engine


class SiteBucket:
    """The objects whose keys begin with `prefix`, a folder's name without a slash."""

    def __init__(self, engine: S3Engine, prefix: str) -> None:
        self.engine = engine
        self.prefix = prefix

    def keys(self, part: str = "") -> list[str]:
        """Of the objects that have `part` in their key, without the prefix, past the proxy.

        Probes are left out: the mirror writes and deletes them at any time.
        """
        found: list[str] = []
        token = ""
        while True:
            query = f"list-type=2&prefix={quote(self.prefix, '')}%2F{token}"
            answer = self.engine.call("GET", f"/{BUCKET}?{query}")
            assert answer.status == 200, answer
            found += [unquote(key) for key in re.findall(r"<Key>([^<]*)</Key>", answer.body.decode())]
            more = re.search(r"<NextContinuationToken>([^<]*)<", answer.body.decode())
            if more is None:
                break
            token = f"&continuation-token={quote(more[1], '')}"
        keys = [each.partition("/")[2] for each in found]
        return [key for key in keys if part in key and not key.startswith(PROBES)]

    def counted(self) -> Iterator[str]:
        """The keys of the states of hosted blobs that name an object."""
        for key in self.keys("states/"):
            content = b"" if key.startswith("states/lost/") else self.object(key)
            if content and json.loads(content)["condition"] != "gone":
                yield key

    def object(self, key: str) -> bytes | None:
        """Its bytes; `key` as `keys` gives it."""
        return self.engine.object(quote(f"{self.prefix}/{key}"))

    def put_object(self, key: str, content: bytes) -> None:
        """As if somebody else had written it, or the store's disk had changed it."""
        self.engine.put_object(quote(f"{self.prefix}/{key}"), content)

    def delete_object(self, key: str) -> None:
        """As if somebody else had deleted it, or the store had lost it."""
        self.engine.delete_object(quote(f"{self.prefix}/{key}"))

    def unfinished_uploads(self) -> list[str]:
        """The keys of uploads in parts that have neither ended nor been aborted."""
        answer = self.engine.call("GET", f"/{BUCKET}?prefix={quote(self.prefix, '')}%2F&uploads=")
        assert answer.status == 200, answer
        return re.findall(r"<Key>([^<]*)</Key>", answer.body.decode())
