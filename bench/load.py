"""Many small requests: how many a second a server answers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Final

from bench.content import MANIFEST_TYPE
from bench.process import BenchFailed, program

_ROOT: Final = Path(__file__).resolve().parent.parent
_CONNECTIONS: Final = 64
_CLIENTS: Final = 2
#: How many times as long a measurement takes that is made again because not one answer came: a machine may be busy.
_LONGER: Final = (1, 5, 25)

_SCRIPT: Final = """
wrk.headers["Accept"] = "%s"
function done(summary)
  local e = summary.errors
  io.write(string.format('\\nJSON{"requests": %%d, "microseconds": %%d, "errors": %%d}\\n', summary.requests,
    summary.duration, e.connect + e.read + e.write + e.status + e.timeout))
end
"""


def get_rate(port: int, path: str, seconds: int, directory: Path, *, tls: bool = False) -> tuple[float, int]:
    """GET requests a second by wrk (2 threads, 64 connections), and how many there were. Raises `BenchFailed`."""
    script = directory / f"get-{port}.lua"
    script.write_text(_SCRIPT % MANIFEST_TYPE)
    url = f"{'https' if tls else 'http'}://127.0.0.1:{port}{path}"
    for longer in _LONGER:
        argv = [program("wrk"), f"-t{_CLIENTS}", f"-c{_CONNECTIONS}", f"-d{seconds * longer}s", "--timeout", "60s"]
        done = subprocess.run([*argv, "-s", str(script), url], capture_output=True, text=True, check=False)
        said = next((line[4:] for line in done.stdout.splitlines() if line.startswith("JSON")), None)
        if said is None:
            raise BenchFailed(f"wrk on {path}: {done.stdout}{done.stderr}")
        answer = json.loads(said)
        if answer["errors"]:
            raise BenchFailed(f"wrk on {path}: {said}")
        if answer["requests"]:
            return answer["requests"] * 1e6 / answer["microseconds"], int(answer["requests"])
    raise BenchFailed(f"wrk on {path}: no answer in {seconds * _LONGER[-1]} s")


def head_rate(port: int, path: str, size: int, seconds: int, *, tls: bool = False) -> tuple[float, int]:
    """HEAD requests a second by two processes with 32 connections each, and how many. Raises `BenchFailed`."""
    argv = [
        sys.executable,
        "-m",
        "bench.heads",
        str(port),
        path,
        str(size),
        str(_CONNECTIONS // _CLIENTS),
        str(seconds),
        *(["tls"] if tls else []),
    ]
    clients = [
        subprocess.Popen(argv, cwd=_ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(_CLIENTS)
    ]
    rate, count = 0.0, 0
    for client in clients:
        said, wrong = client.communicate()
        if client.returncode != 0:
            raise BenchFailed(f"HEAD of {path}: {wrong[-1000:]}")
        answer = json.loads(said)
        rate += answer["requests"] / answer["seconds"]
        count += int(answer["requests"])
    return rate, count
