"""The receiver of events on the page about them works as it is printed there."""

from __future__ import annotations

import http.client
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirror.policy.events.signature import signed_headers
from tests.support.engines.ports import free_ports
from tests.support.process import PATIENCE, eventually

_PAGE = Path(__file__).resolve().parents[2] / "docs" / "events.md"
_EVENT = b'{"id": "1", "type": "mirror.image.pushed", "subject": "corp/app", "data": {"tags": ["v1"]}}'


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """Its port, and its process."""
    [program] = re.findall(r"```python\n(.*?)```", _PAGE.read_text(), re.DOTALL)
    assert len(program.strip().splitlines()) <= 25
    script = tmp_path / "receiver.py"
    script.write_text(program)
    (tmp_path / "secret").write_bytes(b"between us\n")
    [port] = free_ports(1)
    environment = {**os.environ, "PORT": str(port), "SECRET_FILE": str(tmp_path / "secret")}
    process = subprocess.Popen([sys.executable, script], env=environment, stdout=subprocess.PIPE, text=True)
    try:
        eventually(lambda: _listens(port), "the receiver listens")
        yield port, process
    finally:
        process.kill()
        process.communicate()


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def _post(port: int, body: bytes, secrets: list[bytes], at: float) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request("POST", "/", body, signed_headers(secrets, int(at), body))
        return connection.getresponse().status
    finally:
        connection.close()


def test_it_takes_what_is_genuine_and_nothing_else(receiver: tuple[int, subprocess.Popen[str]]) -> None:
    """Signed by the secret, also beside another one, and not long ago; each event once."""
    port, process = receiver
    now = time.time()
    assert _post(port, _EVENT, [b"wrong"], now) == 401
    assert _post(port, _EVENT, [], now) == 401
    assert _post(port, _EVENT, [b"between us"], now - 3600) == 401
    assert _post(port, _EVENT, [b"a new one", b"between us"], now) == 204
    assert _post(port, _EVENT, [b"between us"], now) == 204
    second = _EVENT.replace(b'"1"', b'"2"')
    assert _post(port, second, [b"between us"], now) == 204
    assert process.stdout
    lines = [process.stdout.readline() for _ in range(2)]
    assert lines == ["mirror.image.pushed corp/app {'tags': ['v1']}\n"] * 2
