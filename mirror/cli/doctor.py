"""`doctor`: checks that this machine pulls through the mirror, and that the mirror's own machine works."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Final

import typer

from mirror import config as settings
from mirror import telemetry
from mirror.cli.admin_client import ask_if_running
from mirror.cli.base import ConfigFile, JsonOption, application, counted, say, say_json
from mirror.cli.nodes import (
    AuthorityOption,
    MirrorArgument,
    PasswordOption,
    RootOption,
    UserOption,
    read_account,
    read_authority,
)
from mirror.cli.store_checks import describe_unread
from mirror.config import PUBLIC, Config
from mirror.errors import ConfigError, IndexUnavailable, MirrorError, RequestError, StoreError
from mirror.index.probing import probe_redis
from mirror.index.redis_address import parse_redis_url
from mirror.nodes.clients import CLIENTS
from mirror.nodes.disk import NodeFiles
from mirror.nodes.findings import (
    Finding,
    Level,
    judge_backup,
    judge_budget,
    judge_client,
    judge_clock,
    judge_own_name,
    judge_quota,
    worst,
)
from mirror.nodes.machine import look_at_limits, look_at_store
from mirror.nodes.plan import MirrorUrl, NodeRefused
from mirror.nodes.probe import Visitor
from mirror.nodes.trial_push import TrialPush
from mirror.oci.reference import check_name
from mirror.policy.image_names import Image, parse_image
from mirror.policy.routing import Registry, RoutingTable, looks_like_host
from mirror.policy.upstream.budget import Budget
from mirror.values.sizes import parse_capacity

_HUB: Final = "docker.io"

#: Files and folders that show that a client is on this machine, configured or not. The containerd program is no such
#: sign, because Docker and k3s contain it.
_SIGNS: Final = {
    "docker": ("/etc/docker/daemon.json", "/usr/bin/dockerd", "/usr/local/bin/dockerd"),
    "containerd": ("/etc/containerd/config.toml", "/etc/containerd/certs.d"),
    "podman": ("/etc/containers/registries.conf", "/usr/bin/podman"),
    "crio": ("/etc/crio", "/usr/bin/crio"),
    "buildkit": ("/etc/buildkit/buildkitd.toml", "/usr/bin/buildkitd", "/usr/local/bin/buildkitd"),
    "k3s": ("/etc/rancher/k3s", "/usr/local/bin/k3s"),
    "rke2": ("/etc/rancher/rke2", "/usr/local/bin/rke2"),
}

#: If one of these findings is a problem, the mirror was not reached.
_UNREACHED: Final = ("certificate", "reach")

_LABEL: Final = {Level.OK: "ok     ", Level.WARNING: "WARNING", Level.PROBLEM: "PROBLEM"}


@application.command()
def doctor(
    mirror_url: MirrorArgument = None,
    config: ConfigFile = None,
    image: Annotated[str | None, typer.Option(help="Request the manifest of this image through the mirror.")] = None,
    push: Annotated[
        str | None, typer.Option(help="Check that images can be pushed to this hosted repository; nothing is pushed.")
    ] = None,
    client: Annotated[str | None, typer.Option(help=f"Require this client: {', '.join(CLIENTS)}.")] = None,
    as_json: JsonOption = False,
    root: RootOption = Path("/"),
    ca_file: AuthorityOption = None,
    username: UserOption = None,
    password_file: PasswordOption = None,
) -> None:
    """Examine a node (MIRROR_URL), the mirror's own machine (--config), or both. Show problems with advice."""
    loaded = settings.load(config) if config is not None or mirror_url is None else None
    telemetry.set_up_logging("error")
    if client is not None and client not in CLIENTS:
        raise ConfigError([f"--client: {client[:80]!r} is not one of {', '.join(CLIENTS)}"])
    account = read_account(username, password_file)
    visitor, mirror = None, MirrorUrl.parse(mirror_url) if mirror_url is not None else None
    wanted = None if image is None else _image(image, loaded, mirror)
    pushed = None if push is None else _pushed(push, mirror)
    if mirror is not None:
        visitor = Visitor(mirror, read_authority(ca_file, mirror), account)
    elif loaded is not None and (own := _own_url(loaded)):
        visitor = Visitor(own, _own_authority(loaded), account, own=True)
    findings: list[Finding] = []
    if visitor is not None:
        findings += visitor.look()
        reached = not any(finding.what in _UNREACHED and finding.level is Level.PROBLEM for finding in findings)
        if wanted is not None and reached:
            findings += visitor.pull(wanted)
        if pushed is not None and reached:
            findings += TrialPush(visitor, pushed).look()
        if mirror is not None:
            disk = NodeFiles(root)
            names = [client] if client else [name for name, signs in _SIGNS.items() if any(map(disk.exists, signs))]
            # images are pushed under the mirror's own name
            registry = wanted.repo.registry if wanted is not None else mirror.address if pushed is not None else _HUB
            findings += _clients(disk, names, mirror, registry, demanded=client is not None)
            if reached and "docker" in names:
                findings += visitor.as_docker()
    if loaded is not None:
        findings += look_at_store(loaded.store.root, parse_capacity(loaded.store.capacity))
        findings += (in_bucket := list(_bucket(loaded)))
        if worst(in_bucket) is not Level.PROBLEM:
            findings += _notes(loaded)
        findings += _hosted(loaded)
        findings += asyncio.run(_services(loaded))
        findings.append(look_at_limits())
    _print(findings, as_json)
    if worst(findings) is Level.PROBLEM:
        raise typer.Exit(1)


def _print(findings: Sequence[Finding], as_json: bool) -> None:
    if as_json:
        listed = [
            {"what": finding.what, "level": finding.level.value, "text": finding.text, "advice": finding.advice}
            for finding in findings
        ]
        say_json(listed)
        return
    for finding in findings:
        say(f"{_LABEL[finding.level]} {finding.what}: {finding.text}")
        if finding.advice:
            say(f"        -> {finding.advice}")
    problems = sum(finding.level is Level.PROBLEM for finding in findings)
    warnings = sum(finding.level is Level.WARNING for finding in findings)
    say(f"{counted(len(findings), 'finding')}: {counted(problems, 'problem')}, {counted(warnings, 'warning')}")


# ---------------------------------------------------------------------------------------------------- the node


def _clients(
    disk: NodeFiles, names: Sequence[str], mirror: MirrorUrl, registry: str, *, demanded: bool
) -> Iterable[Finding]:
    """Findings about the clients. `demanded`: the caller named the client."""
    if not names:
        advice = "is this the node? Check --root, or name the client: --client containerd"
        yield Finding("clients", Level.WARNING, "no client found on this machine", advice)
    for name in names:
        try:
            asked = CLIENTS[name].asks(disk, registry)
        except NodeRefused as error:
            yield Finding(f"client {name}", Level.PROBLEM, str(error), "repair that file")
            continue
        if registry == mirror.address:
            yield judge_own_name(name, asked, mirror)
        else:
            yield judge_client(name, asked, registry, mirror, demanded=demanded)


def _image(text: str, loaded: Config | None, mirror: MirrorUrl | None) -> Image:
    """The image; the registry of one that has the mirror's own name is the mirror's address.

    Raises `ConfigError`. Without a configuration, any registry may be configured at the mirror.
    """
    first = text.strip().removeprefix("docker://").partition("/")[0].lower()
    if loaded is not None and (mirror is None or first != mirror.address):
        from mirror.config import routing_table

        table = routing_table(loaded)
    else:
        known = [
            Registry(str(entry["name"]), tuple(entry.get("aliases", ())), library=entry["name"] == _HUB)
            for entry in PUBLIC
        ]
        named = [Registry(first)] if "/" in text and looks_like_host(first) else []
        table = RoutingTable.build([*known, *named], _HUB)
    try:
        return parse_image(text, table, virtual=True)
    except RequestError as error:
        raise ConfigError([f"--image: {error}"]) from error


def _pushed(text: str, mirror: MirrorUrl | None) -> str:
    """The name of a repository, as it follows the mirror's address in the names of images. Raises `ConfigError`."""
    name = text.strip().removeprefix("docker://")
    if mirror is not None:
        name = name.removeprefix(f"{mirror.address}/")
    try:
        return check_name(name)
    except RequestError as error:
        raise ConfigError([f"--push: {error}; write it without a tag, as corp/team-a/app"]) from error


# ------------------------------------------------------------------------------------------- the mirror's machine


def _own_url(loaded: Config) -> MirrorUrl | None:
    """The URL of the mirror on its own machine; None if it listens on unix sockets only."""
    for listener in loaded.server.listen:
        host, _, port = listener.rpartition(":")
        if listener.startswith("unix:") or port == "0":
            continue
        host = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)  # noqa: S104  only compared
        return MirrorUrl("https" if loaded.server.tls_certificate else "http", host, int(port))
    return None


def _own_authority(loaded: Config) -> str | None:
    certificate = loaded.server.tls_certificate
    return None if certificate is None else certificate.read_text()


def _bucket(loaded: Config) -> Iterable[Finding]:
    """Everything that is needed of the bucket, tried; what fails is listed."""
    from mirror.app.bucket import try_bucket

    tried, said = try_bucket(loaded), set()
    for each in tried:
        # the same cause fails several steps
        if (not each.ok or each.advice) and each.advice not in said:
            said.add(each.advice)
            level = Level.WARNING if each.ok else Level.PROBLEM
            yield Finding(f"bucket, {each.step}", level, each.detail, each.advice)
    if tried and all(each.ok for each in tried):
        yield Finding("bucket", Level.OK, f"{loaded.store.bucket} does all that is needed of it")


def _notes(loaded: Config) -> Iterable[Finding]:
    """Whether all pins and freezes can be read: one that cannot be read may stop eviction."""
    try:
        messages = describe_unread(loaded)
    except StoreError as error:
        yield Finding("pins", Level.PROBLEM, str(error), "repair the disk or its permissions: nothing is evicted")
        return
    for message in messages:
        yield Finding("pins", Level.PROBLEM, message)
    if not messages:
        yield Finding("pins", Level.OK, "all pins and freezes can be read")


def _backup(loaded: Config) -> Iterable[Finding]:
    from mirror.store.hosted.backup_folder import last_backup
    from mirror.store.local.layout import Layout

    try:
        yield judge_backup(last_backup(Layout(loaded.store.root)), time.time())
    except StoreError as error:
        yield Finding("backup", Level.PROBLEM, str(error))


def _hosted(loaded: Config) -> Iterable[Finding]:
    """What the configuration closes to everybody; of a running mirror, how full hosted registries are, and damage."""
    for hint in settings.hints(loaded):
        yield Finding("configuration", Level.WARNING, hint)
    if not loaded.hosted:
        return
    if loaded.store.bucket:
        yield Finding("backup", Level.OK, "hosted images are in the bucket, whose own copies are to be looked after")
    else:
        yield from _backup(loaded)
    try:
        status = ask_if_running(loaded, "GET", "/admin/v1/status")
    except MirrorError as error:
        yield Finding("admin API", Level.PROBLEM, str(error), "commands need it while the mirror runs")
        return
    if status is None:
        return
    for usage in status["hosted"]:
        yield judge_quota(usage["scope"], usage["bytes"], usage["quota"])
    if damaged := status["store"]["hosted_damaged"]:
        advice = "`mirror status --verbose` names them: push their images again, and check the disk"
        yield Finding("hosted blobs", Level.PROBLEM, f"{counted(damaged, 'blob')} damaged", advice)


async def _services(loaded: Config) -> list[Finding]:
    findings = []
    if url := loaded.index.url.get_secret_value():
        findings.append(await _redis(url, loaded.index.timeout))
    if loaded.offline:
        findings.append(Finding("registries", Level.OK, "sealed: no registry is contacted"))
        return findings
    from mirror.app.upstreams import open_registries
    from mirror.upstream.check import ask_budget, check_all

    try:
        async with open_registries(loaded) as registries:
            for registry, result in zip(registries, await check_all(registries), strict=True):
                level = Level.OK if result.ok else Level.PROBLEM
                text = f"{result.url}: {result.detail}"
                findings.append(Finding(f"registry {result.upstream}", level, text, result.advice))
                if result.ok and registry.name == _HUB:
                    findings.append(_budget(await ask_budget(registry)))
            if skews := [registry.ahead for registry in registries if registry.ahead is not None]:
                # the median, because the clock of a single registry may be wrong
                findings.append(judge_clock(median(skews), "the registries'", "clock of this machine"))
    except MirrorError as error:
        findings.append(Finding("registries", Level.PROBLEM, str(error), "mirror check reports every mistake"))
    return findings


def _budget(budget: Budget | None) -> Finding:
    if budget is None:
        return Finding(f"budget {_HUB}", Level.OK, "it has no limit, or does not report one")
    return judge_budget(_HUB, budget.limit, budget.remaining, budget.window)


async def _redis(url: str, budget: float) -> Finding:
    """Without Redis the mirror uses its disk, which is slower: a problem, because a warning would be overlooked."""
    try:
        redis = await probe_redis(parse_redis_url(url))
    except IndexUnavailable as error:
        return Finding("redis", Level.PROBLEM, str(error), "start it, or correct index.url; the disk is used now")
    text = f"version {redis.version}, {redis.seconds * 1000:.1f} ms per round trip"
    if redis.is_too_old:
        return Finding("redis", Level.PROBLEM, text, "the index needs Redis 7 or Valkey")
    if redis.seconds > budget / 4:
        return Finding("redis", Level.WARNING, text, f"too slow for index.timeout ({budget:g} s): move it closer")
    if redis.limit and redis.policy != "noeviction":
        return Finding("redis", Level.WARNING, f"{text}, {redis.policy}", "set maxmemory-policy noeviction")
    return Finding("redis", Level.OK, text)
