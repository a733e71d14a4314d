"""A mirror as users run it, whose bucket is an engine behind a proxy that causes faults.

with BucketSite(tmp_path, seaweedfs) as site:
    site.push("corp/app", "v1", layer)
    site.proxy.cause(Reset())
    site.pull("corp/app", "v1")
    site.lose_disk()                 # the mirror ends, its disk is new, it starts again
"""

from __future__ import annotations

import http.client
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote, unquote

from tests.support.engines.fault_proxy import FaultProxy
from tests.support.engines.s3_engine import BUCKET, S3Engine
from tests.support.images import sha256
from tests.support.mirror_process import MirrorProcess, write_config
from tests.support.process import PATIENCE
from tests.support.push_client import image

#: Everybody may do everything with what is hosted as `corp`; what nobody uses is not collected before a day is over.
HOSTED: Final = """
    [[hosted]]
    name = "corp"
    [[access.rule]]
    effect = "allow"
    callers = ["*"]
    actions = ["pull", "push", "overwrite", "delete"]
"""


@dataclass(frozen=True, slots=True)
class Said:
    """An answer of the mirror."""

    status: int
    headers: Any
    body: bytes

    @property
    def message(self) -> str:
        """Of an error."""
        [error] = json.loads(self.body)["errors"]
        return str(error["message"])


class BucketSite:
    """Its own prefix of the engine's bucket, the name of `folder`; `more` is TOML, `bucket` further settings of it."""

    def __init__(
        self,
        folder: Path,
        engine: S3Engine,
        *,
        upstreams: Mapping[str, str] | None = None,
        cache: bool = False,
        workers: int = 1,
        more: str = HOSTED,
        env: Mapping[str, str] | None = None,
        **bucket: Any,
    ) -> None:
        self.engine = engine
        self.prefix = re.sub(r"[^a-z0-9-]", "-", folder.name.lower())
        self.proxy = FaultProxy(engine.endpoint)
        self._store = folder / "store"
        access = engine.access.below(self.prefix).changed(endpoint=self.proxy.url, **bucket)
        self.config = write_config(
            folder,
            upstreams or {},
            workers=workers,
            store=f"bucket = {json.dumps(access.url)}\ncache_in_bucket = {json.dumps(cache)}",
            more=f"{more}\n{access.table()}",
        )
        self._environment = env
        self._address = "127.0.0.1:0"
        self._mirror: MirrorProcess | None = None

    # ------------------------------------------------------------------------------------------- the mirror

    @property
    def mirror(self) -> MirrorProcess:
        """That runs now."""
        assert self._mirror is not None, "it does not run"
        return self._mirror

    def start(self) -> None:
        """At the same address each time."""
        self._mirror = MirrorProcess(self.config, "--listen", self._address, env=self._environment)
        self._address = self._mirror.address

    def stop(self) -> None:
        """As an operator does; its log has to be clean."""
        mirror, self._mirror = self.mirror, None
        mirror.__exit__(None, None, None)

    def kill(self) -> None:
        """SIGKILL to all of its processes."""
        mirror, self._mirror = self.mirror, None
        mirror.kill()
        mirror.expect_clean_log()

    def lose_disk(self, *, kill: bool = False) -> None:
        """It starts again, with nothing but the bucket."""
        if kill:
            self.kill()
        else:
            self.stop()
        shutil.rmtree(self._store)
        self.start()

    def __enter__(self) -> Self:
        self.proxy.__enter__()
        try:
            self.start()
        except BaseException:
            self.proxy.__exit__()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.proxy.heal()
        try:
            if self._mirror is not None:
                self._mirror.__exit__(kind, error, trace)
        finally:
            self.proxy.__exit__()

    # ------------------------------------------------------------------------------------------- its clients

    def ask(self, method: str, target: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Said:
        """One request on a connection of its own. Raises `OSError` if the answer breaks off."""
        connection = http.client.HTTPConnection("127.0.0.1", self.mirror.port, timeout=PATIENCE)
        try:
            connection.request(method, target, body, dict(headers or {}))
            answer = connection.getresponse()
            return Said(answer.status, answer.headers, answer.read())
        except http.client.HTTPException as error:
            raise ConnectionError(repr(error)) from error
        finally:
            connection.close()

    def push_blob(self, repository: str, content: bytes) -> Said:
        """In one request."""
        return self.ask("POST", f"/v2/{repository}/blobs/uploads/?digest={sha256(content)}", content)

    def put_manifest(self, repository: str, reference: str, content: bytes) -> Said:
        """Its media type is the one that it names."""
        kind = str(json.loads(content)["mediaType"])
        return self.ask("PUT", f"/v2/{repository}/manifests/{reference}", content, {"Content-Type": kind})

    def push(self, repository: str, tag: str, *layers: bytes) -> bytes:
        """An image; returns its manifest. Everything must be acknowledged."""
        config = json.dumps({"os": "linux", "architecture": "amd64", "of": repository, "tag": tag}).encode()
        for content in (config, *layers):
            answer = self.push_blob(repository, content)
            assert answer.status == 201, answer
        manifest = image(config, *layers)
        answer = self.put_manifest(repository, tag, manifest)
        assert answer.status == 201, answer
        return manifest

    def manifest(self, repository: str, reference: str) -> Said:
        """As a client gets it."""
        return self.ask("GET", f"/v2/{repository}/manifests/{reference}")

    def blob(self, repository: str, content: bytes) -> Said:
        """As a client gets it; what it is must be known before."""
        return self.ask("GET", f"/v2/{repository}/blobs/{sha256(content)}")

    def pull(self, repository: str, tag: str) -> bytes:
        """A whole image, each part of which must be right; returns its manifest."""
        found = self.manifest(repository, tag)
        assert found.status == 200, found
        assert found.headers["Docker-Content-Digest"] == sha256(found.body)
        content = json.loads(found.body)
        for descriptor in (content["config"], *content["layers"]):
            answer = self.ask("GET", f"/v2/{repository}/blobs/{descriptor['digest']}")
            assert answer.status == 200, answer
            assert sha256(answer.body) == descriptor["digest"]
        return found.body

    # ------------------------------------------------------------------------------------------- its bucket

    def keys(self, part: str = "") -> list[str]:
        """Of the objects that have `part` in their key, without the prefix, past the proxy."""
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
        return [key for key in (each.partition("/")[2] for each in found) if part in key]

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
