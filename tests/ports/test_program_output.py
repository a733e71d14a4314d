"""What a program that a test started has written is there for who has seen what the program did next."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import IO

from tests.support.process import ProgramProcess, eventually

_PROGRAM = """
import pathlib, sys
print("first", file=sys.stderr, flush=True)
print("second", flush=True)
print("no end of line", end="", flush=True)
pathlib.Path(sys.argv[1]).touch()
pathlib.Path(sys.argv[2]).read_bytes()
"""


class _Late(ProgramProcess):
    """Its threads do not get their turn before a test says so."""

    def __init__(self, *argv: str | Path) -> None:
        self.turn = threading.Event()
        super().__init__(argv)

    def _read(self, stream: IO[bytes]) -> None:
        self.turn.wait()
        super()._read(stream)


def test_lines_do_not_wait_for_the_threads_that_read_them(tmp_path: Path) -> None:
    done, fifo = tmp_path / "done", tmp_path / "fifo"
    os.mkfifo(fifo)
    with _Late(sys.executable, "-c", _PROGRAM, done, fifo) as running:
        try:
            eventually(done.exists, "it has done something")
            assert set(running.lines) == {"first", "second"}
            fifo.write_bytes(b"")
            eventually(lambda: not running.running, "it has ended")
            assert set(running.lines) == {"first", "second", "no end of line"}
        finally:
            running.turn.set()


def test_every_line_is_read_once(tmp_path: Path) -> None:
    program = "for number in range(20000): print(number, 'x' * 50, flush=not number % 100)"
    with ProgramProcess([sys.executable, "-c", program]) as running:
        seen = 0
        while running.running:
            lines = running.lines
            assert len(lines) >= seen
            seen = len(lines)
        assert running.wait() == 0
        assert [int(line.partition(" ")[0]) for line in running.lines] == list(range(20000))
        assert running.wait_for(lambda line: line.startswith("19999"), "the last one")
