"""A mirror whose hosted images are on its disk at first, and in a bucket later."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path

from tests.support.bucket_site import BucketSite
from tests.support.engines.s3_engine import S3Engine
from tests.support.process import ProgramProcess, eventually


class Switching(BucketSite):
    """A mirror that first has no bucket. `before` is its configuration then, `after` that with the bucket."""

    def __init__(self, folder: Path, engine: S3Engine) -> None:
        super().__init__(folder, engine)
        self.after = folder / "after.toml"
        text = self.config.read_text()
        self.after.write_text(text)
        self.before = folder / "before.toml"
        before = re.sub(r"^(bucket|cache_in_bucket) = .*\n", "", text.partition("[bucket]")[0], flags=re.MULTILINE)
        self.before.write_text(before)
        self.config = self.before

    def migrate(self, *words: str) -> ProgramProcess:
        """The command, as a process."""
        return ProgramProcess([sys.executable, "-m", "mirror", "migrate", *words, "--config", self.after])

    def passed(self, *words: str) -> str:
        """What it prints; it must succeed."""
        process = self.migrate(*words)
        assert process.wait() == 0, process.tail()
        return "\n".join(process.lines)

    def set_read_only(self, read_only: bool) -> None:
        """In the configuration that is used now; reloads it."""
        text = re.sub(r"\nread_only = true", "", self.config.read_text())
        self.config.write_text(text.replace('name = "corp"', 'name = "corp"\nread_only = true') if read_only else text)
        self.reload()

    def reload(self) -> None:
        """Returns once new workers serve."""
        before = set(self.mirror.worker_pids())
        os.kill(self.mirror.pid, signal.SIGHUP)
        eventually(lambda: not before & set(self.mirror.worker_pids()) and self.mirror.worker_pids(), "new workers")
