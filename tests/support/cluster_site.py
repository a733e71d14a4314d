"""Replicas as users run them: processes with a disk each, one bucket, one Redis, and proxies between all of them.

with ClusterSite(tmp_path, seaweedfs) as site:                  # three
    site.at(0).push("corp/app", "v1", layer)                    # at this replica
    site.pull("corp/app", "v1")                                 # each request at the next one that runs
    site.at(1).freeze()
    site.at(2).cut_off()                                        # from the bucket, from Redis and from its peers
    with site.ingress() as front: ...                           # nginx with TLS, round robin

What a replica and its surroundings can suffer, and how that ends:

    start() ── kill(), stop() ──> start() …   at the same addresses
            ── freeze() ──> thaw()
            ── cut_from_peers(), cut_off(), bucket.cause(…), redis.hang() ──> mend()
            ── lose_disk()

Members reach each other through a proxy before each internal listener, so `peers` of a replica has what others ask it.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.bucket_site import HOSTED
from tests.support.byte_proxy import ByteProxy
from tests.support.command import Done, mirror
from tests.support.engines.fault_proxy import FaultProxy, Reset
from tests.support.engines.ports import with_free_ports
from tests.support.engines.s3_engine import S3Engine
from tests.support.ingress import Ingress, tls_ingress
from tests.support.mirror_process import MirrorProcess, write_config
from tests.support.site_bucket import SiteBucket
from tests.support.site_client import SiteClient


class Replica(SiteClient):
    """One of them. `peers` is the proxy before its internal listener, `bucket` and `redis` those that it goes through;
    without a bucket, or a Redis, nobody uses them.
    """

    def __init__(
        self, folder: Path, configured: Callable[[Replica], Path], *, bucket: FaultProxy | None, redis: ByteProxy | None
    ) -> None:
        folder.mkdir()
        self.folder = folder
        self.port = 0
        self.internal_port = 0
        self.bucket = bucket
        self.redis = redis
        self.peers = FaultProxy("http://127.0.0.1:0")
        #: Whom it takes for members, if that is not all of them; read at its next start.
        self.members: Sequence[str] | None = None
        self._configured = configured
        self._mirror: MirrorProcess | None = None
        self._frozen = False

    def __repr__(self) -> str:
        return f"<{self.folder.name} at {self.port}>"

    def _next_port(self) -> int:
        return self.port

    # ------------------------------------------------------------------------------------------- its process

    @property
    def store(self) -> Path:
        """The root of its disk."""
        return self.folder / "store"

    @property
    def config(self) -> Path:
        """Its configuration, as it was written at the last start."""
        return self.folder / "mirror.toml"

    @property
    def member(self) -> str:
        """Its address in the list of members."""
        return self.peers.url

    @property
    def mirror(self) -> MirrorProcess:
        """That runs now."""
        assert self._mirror is not None, f"{self!r} does not run"
        return self._mirror

    @property
    def running(self) -> bool:
        """Whether it was started, and neither stopped nor killed."""
        return self._mirror is not None

    def start(self) -> None:
        """At the same addresses each time. Returns once it listens."""
        if self.port:
            self._start([self.port, self.internal_port])
        else:
            with_free_ports(2, self._start)

    def _start(self, ports: list[int]) -> None:
        assert self._mirror is None, f"{self!r} runs already"
        self.port, self.internal_port = ports
        self.peers.lead_to("127.0.0.1", self.internal_port)
        self._mirror = MirrorProcess(self._configured(self), "--listen", f"127.0.0.1:{self.port}")

    def command(self, *words: str) -> Done:
        """Run `mirror words…` beside it, to its end; it must succeed."""
        done = self.try_command(*words)
        assert done.status == 0, done
        return done

    def try_command(self, *words: str) -> Done:
        """Run `mirror words…` beside it, to its end."""
        return mirror(*words, "--config", self.config)

    def stop(self) -> None:
        """As an operator does; its log has to be clean."""
        mirror, self._mirror = self.mirror, None
        mirror.__exit__(None, None, None)

    def kill(self) -> None:
        """SIGKILL to all of its processes."""
        mirror, self._mirror = self.mirror, None
        self._frozen = False
        mirror.kill()
        mirror.expect_clean_log()

    def freeze(self) -> None:
        """SIGSTOP to all of its processes: connections to it are accepted by the kernel, and nobody answers."""
        self.mirror.freeze()
        self._frozen = True

    def thaw(self) -> None:
        """After `freeze`. Repeatable."""
        if self._frozen:
            self.mirror.thaw()
            self._frozen = False

    def wipe(self) -> None:
        """Its disk is empty; it must not run."""
        assert self._mirror is None, f"{self!r} runs"
        shutil.rmtree(self.store, ignore_errors=True)

    def lose_disk(self, *, kill: bool = False) -> None:
        """It starts again, with nothing but what others have."""
        if kill:
            self.kill()
        else:
            self.stop()
        self.wipe()
        self.start()

    # --------------------------------------------------------------------------------------- its connections

    def cut_from_bucket(self) -> None:
        """Its connections to the bucket break, also new ones."""
        assert self.bucket is not None
        self.bucket.cause(Reset())
        self.bucket.disconnect()

    def cut_from_redis(self) -> None:
        """Its connections to Redis break, also new ones."""
        assert self.redis is not None
        self.redis.cut()

    def is_sender(self, headers: Mapping[str, str]) -> bool:
        """Whether a request between members is its own, by the address that the sender signs."""
        return any(self.member in value for value in headers.values())

    def mend(self) -> None:
        """Every connection passes again, but those that other replicas were cut from."""
        self.peers.heal()
        if self.bucket is not None:
            self.bucket.heal()
        if self.redis is not None:
            self.redis.heal()

    def __enter__(self) -> Self:
        self.peers.__enter__()
        if self.bucket is not None:
            self.bucket.__enter__()
        if self.redis is not None:
            self.redis.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.mend()
        try:
            if self._mirror is not None:
                self.thaw()
                self._mirror.__exit__(kind, error, trace)
        finally:
            self.peers.__exit__()
            if self.bucket is not None:
                self.bucket.__exit__()
            if self.redis is not None:
                self.redis.__exit__(None, None, None)


class ClusterSite(SiteClient):
    """`engine` is the store of the bucket, below a prefix of its own; None: the replicas have their disks alone, and
    host nothing. `redis` is the address of a server that all share, each through a proxy; `index` is the URL of others.

    `cluster` are further settings of `[cluster]`; if they say nothing else, open uploads hold an ending replica for
    one second. `bucket` are those of `[bucket]`, `upstream` lines of each `[[upstream]]`, and `more` is TOML.
    """

    def __init__(
        self,
        folder: Path,
        engine: S3Engine | None = None,
        *,
        replicas: int = 3,
        workers: int = 1,
        upstreams: Mapping[str, str] | None = None,
        upstream: str = "",
        cache: bool = False,
        redis: str | tuple[str, int] | None = None,
        index: str = "",
        index_timeout: str = "5s",
        tag_ttl: str = "5m",
        more: str | None = None,
        cluster: Mapping[str, Any] | None = None,
        **bucket: Any,
    ) -> None:
        self._folder = folder
        self._engine = engine
        self._workers = workers
        self._upstreams = dict(upstreams or {})
        self._upstream = upstream
        self._cache = cache
        self._index = index
        self._index_timeout = index_timeout
        self._tag_ttl = tag_ttl
        self._more = (HOSTED if engine is not None else "") if more is None else more
        # what a fault has left open is open at the end, too: a replica would wait for that to the last
        self._cluster = {"drain": "1s", **(cluster or {})}
        self._settings = bucket
        self._stack = ExitStack()
        self._turns = itertools.count()
        self._choosing = threading.Lock()
        self.prefix = re.sub(r"[^a-z0-9-]", "-", folder.name.lower())
        self._secret = folder / "cluster.secret"
        self._secret.write_bytes(base64.b64encode(os.urandom(32)) + b"\n")
        self._token_key = folder / "token.key"
        self._token_key.write_bytes(base64.urlsafe_b64encode(os.urandom(32)) + b"\n")
        for file in (self._secret, self._token_key):
            file.chmod(0o600)
        self.replicas: Sequence[Replica] = [
            Replica(
                folder / f"replica-{number}",
                self._configure,
                bucket=None if engine is None else FaultProxy(engine.endpoint),
                redis=None if redis is None else ByteProxy(redis),
            )
            for number in range(replicas)
        ]

    def _configure(self, replica: Replica) -> Path:
        settings = {
            "members": list(replica.members or [one.member for one in self.replicas]),
            "address": replica.member,
            "listen": f"127.0.0.1:{replica.internal_port}",
            "secret_file": str(self._secret),
            **self._cluster,
        }
        lines = ["[cluster]", *(f"{name} = {json.dumps(value)}" for name, value in settings.items()), ""]
        store = ""
        if self._engine is not None and replica.bucket is not None:
            changed = {"endpoint": replica.bucket.url, **self._settings}
            access = self._engine.access.below(self.prefix).changed(**changed)
            store = f"bucket = {json.dumps(access.url)}\ncache_in_bucket = {json.dumps(self._cache)}"
            lines.append(access.table())
        return write_config(
            replica.folder,
            self._upstreams,
            workers=self._workers,
            index=self._index if replica.redis is None else f"redis://{replica.redis.address}/0",
            index_timeout=self._index_timeout,
            tag_ttl=self._tag_ttl,
            store=store,
            upstream=self._upstream,
            more="\n".join([self._with_token_key(self._more), *lines]),
        )

    def _with_token_key(self, more: str) -> str:
        """All replicas accept each other's tokens."""
        line = f"token_key_file = {json.dumps(str(self._token_key))}"
        known, count = re.subn(r"(?m)^\s*\[access\]\s*$", f"[access]\n{line}", more)
        return known if count else f"[access]\n{line}\n{more}"

    # ---------------------------------------------------------------------------------------- its replicas

    def at(self, number: int) -> Replica:
        """One replica, counted from 0, and round again."""
        return self.replicas[number % len(self.replicas)]

    @property
    def running(self) -> Sequence[Replica]:
        """Those that were started, and neither stopped nor killed."""
        return [one for one in self.replicas if one.running]

    @property
    def ports(self) -> Sequence[int]:
        """The public listeners of all."""
        return [one.port for one in self.replicas]

    @property
    def bucket(self) -> SiteBucket:
        """What is in the bucket."""
        assert self._engine is not None, "the replicas have no bucket"
        return SiteBucket(self._engine, self.prefix)

    def _next_port(self) -> int:
        running = self.running
        return running[next(self._turns) % len(running)].port

    def others(self, than: Replica) -> Sequence[Replica]:
        """All but one."""
        return [one for one in self.replicas if one is not than]

    def start(self) -> None:
        """All that do not run, at the same time."""
        self.at_once(Replica.start, [one for one in self.replicas if not one.running])

    def at_once(self, verb: Callable[[Replica], object], replicas: Sequence[Replica] | None = None) -> None:
        """Do this with each of them, or of these, in threads."""
        wanted = self.replicas if replicas is None else replicas
        if wanted:
            with ThreadPoolExecutor(len(wanted)) as pool:
                list(pool.map(verb, wanted))

    def cut_from_peers(self, replica: Replica) -> None:
        """No request between this replica and any other one passes; those under way break."""
        replica.peers.cause(Reset())
        for other in self.others(replica):
            other.peers.cause(Reset(), where=lambda call: replica.is_sender(call.headers))
        # its own at last: whoever loses it then asks another one at once, which must not be cut from it as well
        for one in [*self.others(replica), replica]:
            one.peers.disconnect()

    def cut_off(self, replica: Replica) -> None:
        """It reaches neither its peers nor the bucket nor Redis; clients reach it still."""
        self.cut_from_peers(replica)
        if replica.bucket is not None:
            replica.cut_from_bucket()
        if replica.redis is not None:
            replica.cut_from_redis()

    def mend(self) -> None:
        """Every connection passes again."""
        for one in self.replicas:
            one.mend()

    @contextmanager
    def ingress(self) -> Iterator[Ingress]:
        """nginx with TLS before all of them."""
        with tls_ingress(self._folder, self.ports) as front:
            yield front

    def __enter__(self) -> Self:
        try:
            for one in self.replicas:
                self._stack.enter_context(one)
            self.start()
        except BaseException as error:
            self._stack.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # before any of them ends: no end may wait for a peer that is frozen, or cut off
        for one in self.replicas:
            one.mend()
            one.thaw()
        self._stack.__exit__(kind, error, trace)
