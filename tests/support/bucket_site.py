"""A mirror as users run it, whose bucket is an engine behind a proxy that causes faults.

with BucketSite(tmp_path, seaweedfs) as site:
    site.push("corp/app", "v1", layer)
    site.proxy.cause(Reset())
    site.pull("corp/app", "v1")
    site.lose_disk()                 # the mirror ends, its disk is new, it starts again
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tests.support.engines.fault_proxy import FaultProxy
from tests.support.engines.ports import with_free_ports
from tests.support.engines.s3_engine import S3Engine
from tests.support.mirror_process import MirrorProcess, write_config
from tests.support.site_bucket import SiteBucket
from tests.support.site_client import SiteClient

#: Everybody may do everything with what is hosted as `corp`; what nobody uses is not collected before a day is over.
HOSTED: Final = """
    [[hosted]]
    name = "corp"
    [[access.rule]]
    effect = "allow"
    callers = ["*"]
    actions = ["pull", "push", "overwrite", "delete"]
"""


class BucketSite(SiteBucket, SiteClient):
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
        super().__init__(engine, re.sub(r"[^a-z0-9-]", "-", folder.name.lower()))
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
        self._port = 0
        self._mirror: MirrorProcess | None = None

    # ------------------------------------------------------------------------------------------- the mirror

    @property
    def mirror(self) -> MirrorProcess:
        """That runs now."""
        assert self._mirror is not None, "it does not run"
        return self._mirror

    def start(self) -> None:
        """At the same address each time."""
        if self._port:
            self._start([self._port])
        else:
            with_free_ports(1, self._start)

    def _start(self, ports: list[int]) -> None:
        [port] = ports
        self._mirror = MirrorProcess(self.config, "--listen", f"127.0.0.1:{port}", env=self._environment)
        self._port = port

    def stop(self) -> None:
        """As an operator does; its log has to be clean."""
        mirror, self._mirror = self.mirror, None
        mirror.__exit__(None, None, None)

    def kill(self) -> None:
        """SIGKILL to all of its processes."""
        mirror, self._mirror = self.mirror, None
        mirror.kill()
        mirror.expect_clean_log()

    def lose_disk(self, *, kill: bool = False, meanwhile: Callable[[], None] = lambda: None) -> None:
        """It starts again, with nothing but the bucket; `meanwhile` is called while it does not run."""
        if kill:
            self.kill()
        else:
            self.stop()
        shutil.rmtree(self._store)
        meanwhile()
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

    def _next_port(self) -> int:
        return self.mirror.port
