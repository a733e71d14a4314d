"""Why an operation on a file failed is said in one way."""

from __future__ import annotations

import ast
import errno
import os
import socket
import ssl
from pathlib import Path

import pytest

import mirror
from mirror.errors import StoreError, reason_of

_PACKAGE = Path(mirror.__file__).parent
#: What makes errors, or says why a connection failed, which is more than what the system says of a file.
_OTHERS = {
    "errors.py",
    "index/redis_address.py",
    "index/redis_primary.py",
    "nodes/probe.py",
    "store/local/pump.py",
    "upstream/http/body.py",
    "upstream/http/client.py",
}


def test_of_each_kind_of_error(tmp_path: Path) -> None:
    """The words of the system, without number and path; a file that is no text is not quoted."""
    with pytest.raises(OSError, match=str(tmp_path)) as refused:
        (tmp_path / "none").read_text()
    assert reason_of(refused.value) == os.strerror(errno.ENOENT)
    (tmp_path / "bytes").write_bytes(b"secret \xff")
    with pytest.raises(UnicodeDecodeError) as undecoded:
        (tmp_path / "bytes").read_text(encoding="utf-8")
    assert reason_of(undecoded.value) == "not text"
    assert reason_of(OSError("a sentence")) == "a sentence"
    # their numbers are not those of the system
    assert reason_of(socket.gaierror(socket.EAI_NONAME, "no such name")) == "no such name"
    assert reason_of(ssl.SSLError(1, "key values mismatch")) == "key values mismatch"
    assert reason_of(StoreError("full")) == "full"
    assert reason_of(TimeoutError()) == "TimeoutError"


def test_nobody_says_it_in_another_way() -> None:
    """No module looks at `strerror` itself."""
    found = {
        str(path.relative_to(_PACKAGE))
        for path in _PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Attribute) and node.attr == "strerror")
        or (isinstance(node, ast.Constant) and node.value == "strerror")
    }
    assert found == _OTHERS
