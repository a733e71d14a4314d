"""Checks that the mirror in this container answers. Exit status 0 if it does, else 1 with the reason.

It requests `HEALTH_URL`, by default http://127.0.0.1:5000/livez. The certificate of an https URL is not checked: it is
this container's own, and is for the name that clients use.
"""

from __future__ import annotations

import http.client
import os
import ssl
import sys
from urllib.parse import urlsplit

#: Seconds; less than the image's own time-out, so that the reason is printed.
TIMEOUT = 4.0


def main() -> int:
    """Send one request, without a proxy, whatever the environment says."""
    url = os.environ.get("HEALTH_URL", "http://127.0.0.1:5000/livez")
    parts = urlsplit(url)
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection(parts.netloc, timeout=TIMEOUT, context=context)
    else:
        connection = http.client.HTTPConnection(parts.netloc, timeout=TIMEOUT)
    try:
        connection.request("GET", parts.path or "/")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        print(f"{url}: {error or type(error).__name__}", file=sys.stderr)
        return 1
    finally:
        connection.close()
    if status != 200:
        print(f"{url}: status {status}", file=sys.stderr)
    return 0 if status == 200 else 1


if __name__ == "__main__":
    raise SystemExit(main())
