"""Pushes through a real nginx that is set as k8s/hosted, docs/hosted.md and ingress-nginx would set it."""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest
import yaml
from yarl import URL

from mirror.oci.digest import Digest
from tests.support.kustomize import render
from tests.support.live_mirror import LiveMirror, noise, until
from tests.support.nginx import in_http, nginx
from tests.support.push_client import OPEN, hosting_mirror

_ROOT: Final = Path(__file__).resolve().parents[2]
_HOST: Final = "mirror.example.com"
_UPLOADS: Final = "/v2/corp/team-a/app/blobs/uploads/"
#: More than the proxies of a cache let through, and than nginx keeps in memory.
_LAYER: Final = noise(9 << 20)

_SERVER: Final = """
server {{
    listen unix:{directory}/front;
    location / {{
        proxy_pass http://127.0.0.1:{port};
        {settings}
    }}
}}
"""

#: What ingress-nginx makes of an annotation. A time-out is in seconds.
_DIRECTIVES: Final = {
    "proxy-body-size": "client_max_body_size {};",
    "proxy-request-buffering": "proxy_request_buffering {};",
    "proxy-buffering": "proxy_buffering {};",
    "proxy-max-temp-file-size": "proxy_max_temp_file_size {};",
    "proxy-read-timeout": "proxy_read_timeout {}s;",
    "proxy-send-timeout": "proxy_send_timeout {}s;",
}
#: What it sets without being asked. The test's nginx has no TLS, so the scheme is written out.
_ALWAYS: Final = "proxy_http_version 1.1; proxy_set_header Host $http_host; proxy_set_header X-Forwarded-Proto https;"


def _by_annotations(annotations: Mapping[str, str]) -> str:
    words = {name.rpartition("/")[2]: value for name, value in annotations.items()}
    lines = [line.format(words[name]) for name, line in _DIRECTIVES.items() if name in words]
    return "\n".join([_ALWAYS, *lines])


def _ingress(overlay: str) -> str:
    """The settings that the first Ingress of an overlay makes."""
    ingresses = [one for one in render(_ROOT / "k8s" / overlay) if one["kind"] == "Ingress"]
    assert ingresses
    return _by_annotations(ingresses[0]["metadata"]["annotations"])


def _page(language: str) -> str:
    """The one example of this language, below "Behind an ingress"."""
    page = (_ROOT / "docs/hosted.md").read_text()
    [section] = re.findall(r"^## Behind an ingress$(.*?)^## ", page, re.MULTILINE | re.DOTALL)
    [example] = re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)
    text = str(example)
    if language == "yaml":
        return _by_annotations(yaml.safe_load(text)["metadata"]["annotations"])
    return text.replace("$scheme", "https")


@asynccontextmanager
async def _front(settings: str, mirror: LiveMirror) -> AsyncIterator[aiohttp.ClientSession]:
    """A client that reaches the mirror through an nginx with these settings."""

    def configure(directory: Path) -> str:
        return in_http(directory, _SERVER.format(directory=directory, port=mirror.port, settings=settings))

    with nginx(configure) as directory:
        connector = aiohttp.UnixConnector(str(directory / "front"))
        async with aiohttp.ClientSession(f"http://{_HOST}", connector=connector) as session:
            yield session


async def _slowly(rest: asyncio.Event) -> AsyncIterator[bytes]:
    """The layer, whose second half waits."""
    half = len(_LAYER) // 2
    yield _LAYER[:half]
    await rest.wait()
    yield _LAYER[half:]


@pytest.mark.parametrize("proxy", ["k8s/hosted", "docs: yaml", "docs: nginx"])
async def test_a_push_passes_as_it_comes(proxy: str, tmp_path: Path) -> None:
    """A large layer in chunks is let through, and the mirror has its bytes before its end."""
    settings = _ingress("hosted") if proxy == "k8s/hosted" else _page(proxy.partition(": ")[2])
    async with hosting_mirror(tmp_path) as mirror, _front(settings, mirror) as client:
        begun = await client.post(_UPLOADS)
        assert begun.status == 202, await begun.text()
        location = begun.headers["Location"]
        assert location.startswith("/v2/")
        rest = asyncio.Event()
        sending = asyncio.create_task(_patch(client, location, _slowly(rest)))
        uploads = mirror.app.storage.hosted.uploads
        await until(lambda: any(one.size > 1 << 20 for one in uploads.sessions()) or sending.done())
        assert not sending.done()
        rest.set()
        status, headers = await sending
        assert status == 202
        closing = URL(f"{headers['Location']}?digest={Digest.of(_LAYER)}", encoded=True)
        async with client.put(closing) as done:
            assert done.status == 201, await done.text()
        async with client.get(f"/v2/corp/team-a/app/blobs/{Digest.of(_LAYER)}") as got:
            assert await got.read() == _LAYER


@pytest.mark.parametrize("proxy", ["k8s/hosted", "docs: yaml", "docs: nginx"])
async def test_a_login_is_asked_for_under_the_name_that_clients_know(proxy: str, tmp_path: Path) -> None:
    """By https, which the mirror behind the proxy does not speak itself."""
    settings = _ingress("hosted") if proxy == "k8s/hosted" else _page(proxy.partition(": ")[2])
    accounts = tmp_path / "htpasswd"
    accounts.write_text("")
    rule = {**OPEN, "callers": ["authenticated"]}
    access: dict[str, Any] = {"htpasswd": str(accounts), "anonymous": False}
    async with (
        hosting_mirror(tmp_path, rules=[rule], access=access) as mirror,
        _front(settings, mirror) as client,
        client.get("/v2/") as answer,
    ):
        assert answer.status == 401
        assert f'realm="https://{_HOST}/token"' in answer.headers["WWW-Authenticate"]


async def test_the_ingress_of_a_cache_lets_no_layer_through(tmp_path: Path) -> None:
    """Which is right there: and the tests above would notice it."""
    async with hosting_mirror(tmp_path) as mirror, _front(_ingress("replicas"), mirror) as client:
        async with client.post(_UPLOADS) as begun:
            location = begun.headers["Location"]
        status, _ = await _patch(client, location, io.BytesIO(_LAYER))
        assert status == 413


async def _patch(client: aiohttp.ClientSession, location: str, body: Any) -> tuple[int, Mapping[str, str]]:
    async with client.patch(URL(location, encoded=True), data=body) as answer:
        return answer.status, answer.headers
