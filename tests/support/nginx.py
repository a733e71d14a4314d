"""A real nginx, in a folder whose path is short enough for unix sockets; clients reach it at the socket `front`.

with nginx(lambda directory: in_http(directory, "server { listen unix:…/front; … }")) as directory:
    ... connect to directory / "front" ...
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.support.process import ProgramProcess, eventually

_MAIN: Final = """
daemon off; pid {directory}/pid; error_log stderr; user root;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy; fastcgi_temp_path {directory}/f;
    uwsgi_temp_path {directory}/u; scgi_temp_path {directory}/s;
    {http}
}}
"""


def in_http(directory: Path, http: str) -> str:
    """A configuration with this in its `http` block."""
    return _MAIN.format(directory=directory, http=http)


@contextmanager
def nginx(configure: Callable[[Path], str]) -> Iterator[Path]:
    """Runs with the configuration for a directory, which is given back. Its pid is in a file there, `…pid`."""
    # not pytest's directory: the path of a unix socket is short
    with tempfile.TemporaryDirectory(prefix="mt-") as name:
        directory = Path(name)
        (directory / "nginx.conf").write_text(configure(directory))
        with ProgramProcess(["nginx", "-p", directory, "-c", directory / "nginx.conf"]) as running:
            eventually(lambda: any(directory.glob("*pid")) or not running.running, "nginx is up")
            yield directory
