"""A self-signed certificate for loopback, made for each test: a stored one would expire and not be secret."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Sequence
from pathlib import Path


class Certificate:
    """For `localhost` and 127.0.0.1, or other `names`; two PEM files below the directory given."""

    def __init__(
        self,
        directory: Path,
        subject: str = "/CN=localhost",
        names: str = "DNS:localhost,IP:127.0.0.1",
        extensions: Sequence[str] = (),
    ) -> None:
        directory.mkdir(exist_ok=True)
        self.certificate = directory / "certificate.pem"
        self.key = directory / "key.pem"
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
                *("-keyout", str(self.key), "-out", str(self.certificate), "-days", "2", "-subj", subject),
                *("-addext", f"subjectAltName={names}"),
                *(word for extension in extensions for word in ("-addext", extension)),
            ],
            check=True,
            capture_output=True,
        )

    def server(self) -> ssl.SSLContext:
        """The context of a server that shows the certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        return context

    def client(self) -> ssl.SSLContext:
        """The context of a client that trusts this certificate and no other."""
        return ssl.create_default_context(cafile=str(self.certificate))
