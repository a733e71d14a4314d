"""`status`, `purge` and `evict`: how full the store is, and what makes room in it. They ask the running mirror, or use
the disk if none runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, TypeVar

import typer

from mirror import __version__
from mirror import config as settings
from mirror.cli.admin_client import ask, ask_if_running, target_of
from mirror.cli.audit_command import audited
from mirror.cli.base import (
    ConfigFile,
    JsonOption,
    TextTable,
    application,
    complain,
    counted,
    load,
    parse_images,
    say,
    say_json,
)
from mirror.cli.store_checks import check_owner, check_there
from mirror.errors import MirrorError
from mirror.graph.references import names_of
from mirror.inspect.as_json import VictimsJson, purged_json, victims_by_image, victims_json
from mirror.policy.image_names import Image
from mirror.values.durations import format_duration
from mirror.values.sizes import format_size

T = TypeVar("T")

#: What the result of a replication rule may have that somebody should look at, in words.
#: Seconds by which the clock of a replica may be wrong.
_WRONG_CLOCK: Final = 30.0
_TROUBLE: Final = {"failure_count": "failed", "conflict_count": "in conflict", "held_back": "held back"}


@application.command()
def status(
    config: ConfigFile = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Name each damaged hosted blob.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show how full the store is, how much traffic was saved, downloads under way, and what is failing."""
    loaded = load(config)
    answer = ask_if_running(loaded, "GET", "/admin/v1/status")
    if answer is None:
        check_there(loaded)
        nothing = {"events": None, "replication": None, "retention": None}
        answer = {**asyncio.run(_on_disk(loaded)), "flights": [], "upstreams": [], **nothing}
        parts = _Parts(answer["unread"])
    else:
        # a mirror of an earlier version does not say it
        parts = _Parts(answer.setdefault("unread", []))
        answer |= _of_changes(loaded, parts)
        for part in ("flights", "upstreams"):
            answer[part] = parts.read(part, lambda: ask(loaded, "GET", f"/admin/v1/{part}")[part], [])  # noqa: B023
    if loaded.hosted:
        no_round: Mapping[str, Any] = {"last": None, "sweep": None}
        collection = parts.read("collection", lambda: _collection(loaded), no_round)
        answer |= {"collection": collection["last"], "sweep": collection["sweep"]}
    if verbose:
        none: Mapping[str, Any] = {"damaged": [], "more": 0}
        found = parts.read("damaged", lambda: _damaged(loaded), none)
        answer |= {"damaged": found["damaged"], "damaged_more": found["more"]}
    say_json(answer) if as_json else _print_status(answer)


class _Parts:
    """Reads parts of the status, and notes those that cannot be read in `unread`."""

    def __init__(self, unread: list[dict[str, str]]) -> None:
        self._unread = unread

    def read(self, part: str, work: Callable[[], T], otherwise: T) -> T:
        """What `work` returns; `otherwise` if it fails."""
        try:
            return work()
        except MirrorError as error:
            self._unread.append({"part": part, "reason": str(error)})
            return otherwise


def _of_changes(loaded: settings.Config, parts: _Parts) -> dict[str, Any]:
    """What the running mirror says of events, replication and retention; null where none is configured."""
    has_rules = any(hosted.retention for hosted in loaded.hosted)
    asked = {
        "events": ("events?limit=1", "endpoints", bool(loaded.events.endpoint)),
        "replication": ("replication", "rules", bool(loaded.replication)),
        "retention": ("retention", "last", has_rules),
    }
    return {
        part: parts.read(part, lambda: ask(loaded, "GET", f"/admin/v1/{path}")[field], None) if configured else None  # noqa: B023
        for part, (path, field, configured) in asked.items()
    }


def _collection(loaded: settings.Config) -> Mapping[str, Any]:
    """The last round of collection of hosted content, and the last sweep of the bucket, of whichever process."""
    from mirror.app.stored_records import stored_records
    from mirror.collection.bucket_sweep import last_sweep
    from mirror.collection.collection_replies import collection_json
    from mirror.collection.collector import last_round
    from mirror.store.objects.record_tree import Reads

    with stored_records(loaded) as stored:
        rounds = stored.json("collection", Reads.REMEMBERED)
        return collection_json(last_round(rounds), last_sweep(rounds))


def _damaged(loaded: settings.Config) -> Mapping[str, Any]:
    return ask_if_running(loaded, "GET", "/admin/v1/damaged?limit=1000") or asyncio.run(_damaged_on_disk(loaded))


async def _damaged_on_disk(loaded: settings.Config) -> Mapping[str, Any]:
    from mirror.app.building import build

    async with build(loaded, housework=False) as app:
        return await app.admin.hosted.damaged({"limit": "1000"})


async def _on_disk(loaded: settings.Config) -> dict[str, Any]:
    from mirror.app.storage import open_storage, quota_rules
    from mirror.hosting.quotas import Quotas
    from mirror.server.admin.mirror_status import usage_json
    from mirror.server.admin.status_parts import StatusParts
    from mirror.server.admin.worker_status import WorkerJson, published_workers
    from mirror.store.local.status_board import StatusBoard

    parts = StatusParts()
    async with open_storage(loaded) as storage:
        space, thread = storage.eviction.space, asyncio.to_thread
        nothing: tuple[int, int] | None = None
        size, limit = await parts.read("store.bytes", space.fullness(), nothing) or (None, None)
        quarantined = await parts.read("store.quarantine_bytes", thread(space.quarantined), None)
        damaged = await parts.read("store.hosted_damaged", thread(storage.hosted.blobs.damaged), None)
        usage = Quotas(storage.hosted.ledger, quota_rules(loaded)).usage()
        hosted = usage_json(await parts.read("hosted", usage, ()))
        index = {"error": storage.eviction.write_behind.trouble}
        # a mirror that ends has closed its listeners, and goes on with what it has begun
        nobody: list[WorkerJson] = []
        board = StatusBoard(storage.layout, storage.locks)
        workers = await parts.read("workers", thread(published_workers, board), nobody)
    # values that only a running mirror has are null, so that programs find the same names in both cases
    store = {
        "root": str(loaded.store.root),
        "bytes": size,
        "limit": limit,
        "quarantine_bytes": quarantined,
        "hosted_damaged": None if damaged is None else len(damaged),
        "failing_workers": None,
    }
    unknown = {"worker": None, "uptime": None, "traffic": None}
    fields = ("state", "since", "reason", "reads_only", "id", "records_complete", "records_listed", "cache")
    bucket = {"address": loaded.store.bucket, **dict.fromkeys(fields)} if loaded.store.bucket is not None else None
    cluster = loaded.cluster
    members: dict[str, Any] | None = (
        {"name": cluster.name, "address": cluster.address, "members": [], "leases": None}
        if cluster.has_members
        else None
    )
    rest = {"hosted": hosted, "bucket": bucket, "cluster": members, "index": index, "offline": loaded.offline}
    return {"version": __version__, **unknown, "workers": workers, "store": store, **rest, "unread": parts.unread}


def _print_status(status: Mapping[str, Any]) -> None:
    store, workers = status["store"], status["workers"]
    sealed = ", sealed" if status["offline"] else ""
    uptime = format_duration(max((worker["uptime"] for worker in workers), default=0))
    running = f"{counted(len(workers), 'worker')}, up {uptime}" if workers else "not running"
    answers = status["worker"] is not None
    if workers and not answers:
        # the socket was there, and nobody listens on it, after another mirror had taken it over and has ended
        running = f"{running}, without an answer: it starts, ends, has no admin API, or another mirror took its socket"
    say(f"mirror:    {status['version']}, {running}{sealed}")
    say(f"store:     {_fullness(store['bytes'], store['limit'])} in {store['root']}")
    if bucket := status.get("bucket"):
        say(f"bucket:    {describe_bucket(bucket)}")
        if cache := bucket["cache"]:
            say(f"cached:    {_describe_cache(cache)}")
    if cluster := status.get("cluster"):
        for line in describe_cluster(cluster, answers=answers):
            say(line)
    for usage in status.get("hosted", []):
        quota = f" of {format_size(usage['quota'])}" if usage["quota"] is not None else ""
        if usage["bytes"] is None:
            say(f"hosted:    how much {usage['scope']} has{quota} is not known")
        else:
            say(f"hosted:    {usage['scope']} has {format_size(usage['bytes'])}{quota}")
    if size := store["quarantine_bytes"]:
        say(f"damaged:   {format_size(size)} set aside in {store['root']}/quarantine: check the disk")
    if count := store.get("hosted_damaged"):
        names = "" if "damaged" in status else "; `mirror status --verbose` names them"
        say(f"damaged:   {counted(count, 'hosted blob')}: push their images again{names}")
    for blob in status.get("damaged", []):
        say(f"  {blob['digest']} of {', '.join(blob['repositories']) or 'no repository: it will be collected'}")
    if more := status.get("damaged_more"):
        say(f"  and {more} more")
    if count := store.get("failing_workers"):
        say(f"uncached:  {counted(count, 'worker')} could not store the last download: see `mirror doctor`")
    if trouble := status.get("index", {}).get("error"):
        say(f"index:     {trouble}; the disk is used instead")
    if traffic := status.get("traffic"):
        ratio = "nothing served yet" if traffic["hit_ratio"] is None else f"{100 * traffic['hit_ratio']:.1f} % hits"
        sent, saved = format_size(traffic["sent"]), format_size(traffic["saved"])
        say(f"traffic:   {ratio}, {sent} sent to clients, {saved} saved")
    if last := status.get("collection"):
        freed, waiting = format_size(last["bytes"]), format_size(last["waiting_bytes"])
        unread = f", {last['unread_count']} unread: see `mirror gc`" if last["unread_count"] else ""
        say(f"collected: {freed} at {last['ended'] or last['begun']}, {waiting} wait{unread}")
    if sweep := status.get("sweep"):
        lost = f", {counted(sweep['lost'], 'blob')} not found" if sweep["lost"] else ""
        done = sweep["ended"] or f"{100 * sweep['done']:.0f} %"
        say(f"swept:     {counted(sweep['objects'], 'object')}, {format_size(sweep['bytes'])}: {done}{lost}")
    _print_changes(status)
    for part in status.get("unread", []):
        say(f"unread:    {part['part']}: {part['reason']}")
    for upstream in status["upstreams"]:
        _print_upstream(upstream)
    table = TextTable("download", "digest", "received", "clients")
    for flight in status["flights"]:
        size = "?" if flight["size"] is None else format_size(flight["size"])
        received = f"{format_size(flight['received'])} of {size}"
        table.add_row(flight["repository"] or flight["upstream"], flight["digest"], received, str(flight["followers"]))
    if status["flights"]:
        table.show()


def _describe_cache(cache: Mapping[str, Any]) -> str:
    """What the bucket keeps of cached content, in words."""
    known = "" if cache["listed_at"] else " as far as known: it is being listed"
    waiting = f"; {counted(cache['waiting'], 'write')} behind" if cache["waiting"] else ""
    dropped = f"; {cache['dropped']} dropped" if cache["dropped"] else ""
    full = format_size(cache["bytes"]) if cache["limit"] is None else _fullness(cache["bytes"], cache["limit"])
    return f"{full} in the bucket{known}{waiting}{dropped}"


def describe_bucket(bucket: Mapping[str, Any]) -> str:
    """The state of the bucket, in words."""
    words = {
        "ok": "answers",
        "throttled": "asks for fewer requests",
        "refusing": "refuses the mirror",
        "unfit": "is not fit for hosted content",
        "down": f"does not answer since {bucket['since']}",
        None: "not asked, because no mirror answers",
    }
    state = words[bucket["state"]]
    reason = f": {bucket['reason']}" if bucket["reason"] else ""
    overtaken = "; another mirror uses it, this one only reads" if bucket["reads_only"] else ""
    listed = f", {bucket['records_listed']:,} so far" if bucket["records_listed"] else ""
    # a mirror that was overtaken lists nothing any more
    is_listed = bucket["records_complete"] in (True, None) or bucket["reads_only"]
    complete = "" if is_listed else f"; its records are being listed{listed}"
    return f"{bucket['address']} {state}{reason}{overtaken}{complete}"


def _print_changes(status: Mapping[str, Any]) -> None:
    """What of retention, events and replication needs somebody to look at it."""
    if (last := status.get("retention")) and (unread := last["unread_count"]):
        repositories = "1 repository" if unread == 1 else f"{unread} repositories"
        say(f"retention: {repositories} left alone, because of what cannot be read: see `mirror retention --dry-run`")
    elif last and last["ended"] and not last["complete"]:
        say(f"retention: the round of {last['begun']} ended early: see `mirror retention --dry-run`")
    for endpoint in status.get("events") or []:
        waiting, dead, lost = endpoint["waiting"], endpoint["dead"], endpoint["lost"]
        if waiting or dead or lost:
            since = f" since {endpoint['oldest']}" if waiting else ""
            given_up = f", {lost} given up" if lost else ""
            counts = f"{waiting} wait{since}, {dead} dead{given_up}"
            say(f"events:    for {endpoint['endpoint']} {counts}: see `mirror events`")
    for rule in status.get("replication") or []:
        result = rule["result"] or {}
        trouble = [f"{result[count]} {words}" for count, words in _TROUBLE.items() if result.get(count)]
        if rule["state"] == "failed" or trouble:
            what = result.get("error") or ", ".join(trouble) or rule["state"]
            say(f"replicate: {rule['name']}: {what}: see `mirror replicate`")


def _print_upstream(upstream: Mapping[str, Any]) -> None:
    name = upstream["name"]
    if upstream["state"] != "ok":
        retry = max(endpoint["retry_in"] for endpoint in upstream["endpoints"])
        again = f"it is asked again in {retry:.0f} s" if retry >= 1 else "the next request asks it again"
        # a mirror of an earlier version does not say why
        reasons = [endpoint["reason"] for endpoint in upstream["endpoints"] if endpoint.get("reason")]
        why = f": {reasons[-1]}" if reasons else ""
        say(f"upstream:  {name} is {upstream['state']}{why}; {again}; `mirror check --online` asks it now")
    for endpoint in upstream["endpoints"]:
        if failure := endpoint["credentials"]:
            say(f"login:     {name} by {failure['provider']}: {failure['reason']}, since {failure['since']}")
    if budget := upstream["budget"]:
        say(f"budget:    {name} allows {budget['remaining']} more of {budget['limit']} pulls")


def describe_cluster(cluster: Mapping[str, Any], *, answers: bool) -> list[str]:
    """This replica and the others, in words, with the address of each. `answers` is False if nobody could be asked."""
    own = f"cluster:   {cluster['name']}, this replica is {cluster['address']}"
    if not answers:
        return [f"{own}; the others are not asked, because no mirror answers"]
    members = cluster["members"]
    up = sum(member["up"] for member in members)
    lines = [f"{own}; {up} of {counted(len(members), 'other replica')} answering"]
    lines += [f"{member['address']}: {_describe_member(member)}" for member in members]
    lines += describe_leases(cluster)
    versions = {member["version"] for member in members if member["version"]} - {__version__}
    if versions:
        lines.append(f"other versions run there: {', '.join(sorted(versions))}")
    return [lines[0], *(f"           {line}" for line in lines[1:])]


def _describe_member(member: Mapping[str, Any]) -> str:
    if member["since"] is None:
        return "not asked yet"
    return f"answers since {member['since']}" if member["up"] else f"down since {member['since']}: {member['reason']}"


def describe_leases(cluster: Mapping[str, Any]) -> list[str]:
    """Which replica does which work for all, and why this one does none."""
    lines = [f"{lease['work']}: {lease['holder']}, since {lease['since']}" for lease in cluster.get("leases") or ()]
    if abs(offset := cluster.get("clock_offset") or 0.0) > _WRONG_CLOCK:
        side = "ahead of" if offset > 0 else "behind"
        lines.append(f"the clock of this replica is {abs(offset):.0f} s {side} the bucket's: it does no work for all")
    return lines


def _fullness(size: int | None, limit: int | None) -> str:
    if size is None or limit is None:
        return "being counted"
    return f"{format_size(size)} of {format_size(limit)} ({100 * size / limit if limit else 0.0:.0f} %)"


@application.command()
def purge(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="docker.io/library/app:1.0, or by digest.")],
    config: ConfigFile = None,
    as_json: JsonOption = False,
) -> None:
    """Delete an image, and the blobs that no other image needs. Refused while the image is pinned or frozen."""
    loaded = load(config, level="warning")
    [wanted] = parse_images([image], loaded)
    purged: Mapping[str, Any] | None = ask_if_running(loaded, "DELETE", target_of("images", wanted), patience=None)
    if purged is None:
        check_there(loaded)
        check_owner(loaded)
        purged = asyncio.run(_purge(loaded, wanted))
    if as_json:
        say_json(purged)
    else:
        say(f"{purged['image']}: purged, {counted(purged['blobs'], 'blob')}, {format_size(purged['bytes'])}")
        if not purged["manifests"] and purged["tags"]:
            say("its content stays, because another tag points to the same image")
    # an older mirror that is running does not say it
    if unconfirmed := purged.get("unconfirmed"):
        complain(f"mirror: not confirmed, and done once they are back, by {', '.join(unconfirmed)}")
        raise typer.Exit(1)


async def _purge(loaded: settings.Config, wanted: Image) -> Mapping[str, Any]:
    from mirror.app.storage import make_purge, open_storage

    with audited(loaded, "purge", repository=str(wanted.repo), reference=str(wanted.reference)) as about:
        async with open_storage(loaded) as storage:
            purge = make_purge(loaded, storage)
            if storage.cluster is not None:
                from mirror.app.clusters.cluster_purges import in_all_replicas

                purged = await in_all_replicas(storage, storage.cluster, purge)(wanted)
            else:
                purged = await purge(wanted)
        about["bytes"] = purged.bytes
    return purged_json(purged)


@application.command()
def evict(
    config: ConfigFile = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be evicted, and why.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Evict the least recently used images until the store is down to its low water."""
    loaded = load(config, level="warning")
    # a running mirror does it itself; the list comes from the disk in both cases
    done = None if dry_run else ask_if_running(loaded, "POST", "/admin/v1/eviction", patience=None)
    evicted: Mapping[str, Any] = _evict_on_disk(loaded, dry_run) if done is None else done
    say_json(evicted) if as_json else _print_evicted(evicted)


def _evict_on_disk(loaded: settings.Config, dry_run: bool) -> VictimsJson:
    check_there(loaded)
    if not dry_run:
        check_owner(loaded)
    with audited(loaded, "evict", dry_run=dry_run) as about:
        evicted = asyncio.run(_evict(loaded, dry_run))
        about["bytes"] = evicted["bytes"]
    return evicted


async def _evict(loaded: settings.Config, dry_run: bool) -> VictimsJson:
    from mirror.app.storage import open_storage

    async with open_storage(loaded) as storage:
        space = storage.eviction.space
        victims = await (space.plan() if dry_run else space.collect())
        images = {image for victim in victims for image in victim.images}
        names = await asyncio.to_thread(names_of, storage.catalog, images)
    return victims_json(victims_by_image(victims), names, dry_run=dry_run)


def _print_evicted(evicted: Mapping[str, Any]) -> None:
    titles = {image["digest"]: ", ".join(image["names"]) or image["digest"] for image in evicted["images"]}
    table = TextTable("image", "digest", "size", "why")
    for image in evicted["images"]:
        title = titles[image["digest"]] or "blobs that no cached manifest refers to"
        table.add_row(title, counted(len(image["blobs"]), "blob"), format_size(image["bytes"]), "")
        for blob in image["blobs"]:
            shared = [titles.get(digest) or digest for digest in blob["images"][:-1]]
            also = f"; shared with {', '.join(shared)}, evicted as well" if shared else ""
            table.add_row("", blob["digest"], format_size(blob["size"]), blob["reason"] + also)
        table.add_section()
    if evicted["images"]:
        table.show()
    images = counted(sum(image["digest"] is not None for image in evicted["images"]) + evicted["more"], "image")
    verb = "would be evicted" if evicted["dry_run"] else "evicted"
    say(f"{verb}: {images}, {counted(evicted['blobs'], 'blob')}, {format_size(evicted['bytes'])}")
