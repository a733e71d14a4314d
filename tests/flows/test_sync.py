"""Sync rules at work: what they bring in, when again, and who does it. Time passes only when a test says so."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mirror.aio.singleflight import cancel_and_wait
from mirror.app.building import App
from mirror.config import load
from mirror.errors import AlreadyRunning, ConfigError, RuleUnknown
from mirror.prefetch.progress import ProgressMeter
from mirror.store.local.json_records import JsonRecords
from tests.support.command import Done
from tests.support.command import mirror as command
from tests.support.fake_registry import FakeRegistry, stall, status
from tests.support.live_mirror import Clock, LiveMirror, live_mirror, noise, reached, until
from tests.support.mirror_process import write_config
from tests.support.scripted import Stall

_EVERY = 6 * 3600
_RULE: dict[str, Any] = {"from": "docker.io/library/app", "tags_semver": ">=1", "every": "6h"}
_NAME = "docker.io/library/app"


@pytest.fixture
def registry() -> Any:
    """Two releases, a prerelease, and a tag that is none."""
    with FakeRegistry() as running:
        for number, tag in enumerate(["1.0", "1.1", "1.2-rc1", "latest"]):
            # nothing is shared: what fails, fails for one of them
            running.add_image("library/app", tag, [noise(4096, number)], config=b'{"n":%d}' % number)
        yield running


@asynccontextmanager
async def _syncing(
    registry: FakeRegistry, root: Path, *rules: dict[str, Any], clock: Clock | None = None, **settings: Any
) -> AsyncIterator[LiveMirror]:
    """A mirror with rules, the one above if none is given, whose first run is due."""
    rules = rules or (_RULE,)
    async with live_mirror(root, {"docker.io": registry.url}, clock=clock, sync=list(rules), **settings) as mirror:
        yield mirror


async def _tick(mirror: LiveMirror) -> None:
    """One look for what is due, and what is begun to its end."""
    await mirror.app.scheduler.tick()
    await mirror.app.scheduler.idle()


async def _first(mirror: LiveMirror) -> None:
    """A rule is spread over the first minutes after it was first seen."""
    await _tick(mirror)
    mirror.clock.forward(301)
    await _tick(mirror)


async def _status(mirror: LiveMirror, name: str = _NAME) -> dict[str, Any]:
    [status] = [rule for rule in await mirror.app.sync.status() if rule["name"] == name]
    return dict(status)


def _tags(mirror: LiveMirror) -> set[str]:
    return set(mirror.app.storage.catalog.tags(mirror.app.sync.rules[_NAME].repo))


# ------------------------------------------------------------------------------------------------ what is brought in


async def test_only_new_content_is_fetched(registry: FakeRegistry, tmp_path: Path) -> None:
    """The first run fetches the selected tags and nothing else; a later one only the tag that has come since, whose
    pulls are then answered from here.
    """
    async with _syncing(registry, tmp_path / "store") as mirror:
        await _first(mirror)
        assert _tags(mirror) == {"1.0", "1.1"}
        shown = await _status(mirror)
        assert shown["state"] == "ok"
        assert shown["result"]["tags"] == shown["result"]["new_images"] == 2
        assert shown["result"]["bytes"] > 8192
        layer = noise(4096, 77)
        registry.add_image("library/app", "1.3", [layer])
        registry.forget()
        mirror.clock.forward(_EVERY - 10)
        await _tick(mirror)
        assert registry.requests == []
        mirror.clock.forward(10)
        await _tick(mirror)
        assert registry.count("manifests", "GET") == 1
        assert registry.count("blobs", "GET") == 2
        shown = await _status(mirror)
        assert shown["result"]["tags"] == 3
        assert shown["result"]["new"] == ["docker.io/library/app:1.3"]
        registry.stop()
        assert (await mirror.ask("/v2/library/app/manifests/1.3")).status == 200


async def test_a_tag_that_moved_is_fetched_again(registry: FakeRegistry, tmp_path: Path) -> None:
    """A sync is not only for tags that are new."""
    async with _syncing(registry, tmp_path / "store", {**_RULE, "newest": 1}) as mirror:
        await _first(mirror)
        assert _tags(mirror) == {"1.1"}
        registry.add_image("library/app", "1.1", [noise(4096, 5)])
        mirror.clock.forward(_EVERY)
        await _tick(mirror)
        assert (await _status(mirror))["result"]["new"] == ["docker.io/library/app:1.1"]


async def test_a_failed_run_is_reported_and_tried_again(registry: FakeRegistry, tmp_path: Path) -> None:
    """It shows in the state, in the log and in the metrics, and the next try comes sooner than the next regular run."""
    registry.fail("blobs", status(404))
    async with _syncing(registry, tmp_path / "store") as mirror:
        await _first(mirror)
        shown = await _status(mirror)
        assert (shown["state"], shown["consecutive_failures"]) == ("failed", 1)
        [failure] = shown["result"]["failures"]
        assert "docker.io/library/app:1." in failure
        [line] = [line for line in mirror.events("sync ended") if line["level"] == "warning"]
        assert line["first_failure"] == failure
        await _tick(mirror)
        assert (await _status(mirror))["consecutive_failures"] == 1
        mirror.clock.forward(331)
        await _tick(mirror)
        shown = await _status(mirror)
        assert (shown["state"], shown["consecutive_failures"], shown["result"]["failures"]) == ("ok", 0, [])
        text = (await mirror.ask("/metrics")).body.decode()
        assert f'mirror_sync_runs_total{{result="failed",rule="{_NAME}"}}' in text
        assert f'mirror_sync_last_success_timestamp_seconds{{rule="{_NAME}"}}' in text


async def test_a_stale_list_is_a_failure(registry: FakeRegistry, tmp_path: Path) -> None:
    """With upstream down, the tags that are here say nothing about the tags that upstream has."""
    async with _syncing(registry, tmp_path / "store") as mirror:
        await _first(mirror)
        registry.stop()
        mirror.clock.forward(_EVERY)
        await _tick(mirror)
        shown = await _status(mirror)
        assert shown["state"] == "failed"
        assert "docker.io" in shown["result"]["error"]
        assert shown["last_success"] is not None


async def test_a_pattern_without_matches_is_a_failure(registry: FakeRegistry, tmp_path: Path) -> None:
    """It is a mistake more often than not."""
    async with _syncing(registry, tmp_path / "store", {**_RULE, "tags_semver": ">=9"}) as mirror:
        await _first(mirror)
        assert (await _status(mirror))["result"] == {"error": "none of its tags matches semver >=9 (it has 4)"}


@pytest.mark.parametrize(
    "sealed",
    [{"offline": True}, {"route": [{"match": "docker.io/library/*", "offline": True}]}],
    ids=["whole", "route"],
)
async def test_sealed_rules_do_not_run(registry: FakeRegistry, tmp_path: Path, sealed: dict[str, Any]) -> None:
    """No run is due, a manual run says why it cannot be, and upstream is never asked."""
    async with _syncing(registry, tmp_path / "store", **sealed) as mirror:
        await _first(mirror)
        shown = await _status(mirror)
        assert (shown["state"], shown["next_run"], shown["result"]) == ("sealed", None, None)
        ended = await mirror.app.sync.run_rule(_NAME, ProgressMeter(), by="hand")
        assert not ended.ok
        assert "sealed" in ended.result["error"]
        assert registry.requests == []


# ----------------------------------------------------------------------------------------------------- when again


async def test_state_survives_a_restart(registry: FakeRegistry, tmp_path: Path) -> None:
    """A new process knows what the last one did, and waits for the same time."""
    clock = Clock()
    async with _syncing(registry, tmp_path / "store", clock=clock) as mirror:
        await _first(mirror)
        before = await _status(mirror)
    async with _syncing(registry, tmp_path / "store", clock=clock) as mirror:
        assert await _status(mirror) == before
        registry.forget()
        await _tick(mirror)
        assert registry.requests == []
        clock.forward(_EVERY)
        await _tick(mirror)
        assert registry.count("tags") == 1


async def test_a_changed_rule_is_due_at_once(registry: FakeRegistry, tmp_path: Path) -> None:
    """The last run of an older rule of the same name does not count."""
    clock = Clock()
    async with _syncing(registry, tmp_path / "store", clock=clock) as mirror:
        await _first(mirror)
    async with _syncing(registry, tmp_path / "store", {**_RULE, "tags_semver": "1.0"}, clock=clock) as mirror:
        assert (await _status(mirror))["state"] == "never ran"
        await _first(mirror)
        assert (await _status(mirror))["result"]["tags"] == 1


async def test_an_interrupted_run_begins_again_soon(registry: FakeRegistry, tmp_path: Path) -> None:
    """A mirror that is stopped in the middle of a run reports that, and later continues the run."""
    gate, clock = Stall(), Clock()
    # whichever blob is asked for first: the configuration is too small to be stopped in its middle
    registry.fail("blobs", stall(gate))
    rule = {**_RULE, "tags_semver": "1.0"}
    async with _syncing(registry, tmp_path / "store", rule, clock=clock) as mirror:
        await _tick(mirror)
        clock.forward(301)
        task = asyncio.create_task(mirror.app.scheduler.run())
        await reached(gate)
        assert (await _status(mirror))["state"] == "running"
        with pytest.raises(AlreadyRunning):
            await mirror.app.sync.run_rule(_NAME, ProgressMeter(), by="hand")
        await cancel_and_wait(task)
        assert (await _status(mirror))["state"] == "interrupted"
    gate.release()
    async with _syncing(registry, tmp_path / "store", rule, clock=clock) as mirror:
        assert (await _status(mirror))["state"] == "interrupted"
        clock.forward(61)
        await _tick(mirror)
        assert (await _status(mirror))["state"] == "ok"


async def test_a_run_by_hand_that_is_cancelled_waits_for_its_time(registry: FakeRegistry, tmp_path: Path) -> None:
    """A run that a user cancels is not repeated before its regular time."""
    gate = Stall()
    registry.fail("blobs", stall(gate))
    async with _syncing(registry, tmp_path / "store") as mirror:
        meter = ProgressMeter()
        task = asyncio.create_task(mirror.app.sync.run_rule(_NAME, meter, by="hand"))
        await reached(gate)
        meter.cancelled = True
        await cancel_and_wait(task)
        gate.release()
        shown = await _status(mirror)
        assert (shown["state"], shown["result"]) == ("cancelled", {"error": "cancelled"})
        # a blob that was under way comes to its end, as when a client leaves
        await mirror.idle()
        mirror.clock.forward(_EVERY - 60)
        registry.forget()
        await _tick(mirror)
        assert registry.requests == []


async def test_few_rules_at_once(registry: FakeRegistry, tmp_path: Path) -> None:
    """Of many rules that are due together only two run at a time, and all run in the end."""
    gate = Stall()
    registry.fail("tags", stall(gate), times=5)
    for number in range(5):
        registry.add_image(f"team/app{number}", "1.0", [noise(100, number)])
    rules = [{"from": f"docker.io/team/app{number}", "every": "6h"} for number in range(5)]
    async with _syncing(registry, tmp_path / "store", *rules) as mirror:
        await mirror.app.scheduler.tick()
        mirror.clock.forward(301)
        await mirror.app.scheduler.tick()
        # both are under way, and say so
        await until(lambda: registry.count("tags") == 2)
        await mirror.app.scheduler.tick()
        assert [rule["state"] for rule in await mirror.app.sync.status()].count("running") == 2
        gate.release()
        await mirror.app.scheduler.idle()
        for _ in range(2):
            await _tick(mirror)
        assert {rule["state"] for rule in await mirror.app.sync.status()} == {"ok"}


async def test_records_that_are_not_valid_count_as_absent(registry: FakeRegistry, tmp_path: Path) -> None:
    """Records are files, and people may edit files."""
    async with _syncing(registry, tmp_path / "store") as mirror:
        what, records = mirror.app.sync.rule(_NAME).what, JsonRecords(mirror.app.storage.layout, "sync")
        for junk in ({"since": "x"}, {"what": what, "since": 1.0, "start": "x", "end": [], "failures": {}}):
            records.put(_NAME, junk)
            assert (await _status(mirror))["state"] == "never ran"
        await _first(mirror)
        assert (await _status(mirror))["state"] == "ok"
        with pytest.raises(RuleUnknown, match="no sync rule 'x'"):
            mirror.app.sync.rule("x")


# ------------------------------------------------------------------------------------------------------- by whom


async def test_one_of_two_processes_runs_the_schedule(registry: FakeRegistry, tmp_path: Path) -> None:
    """Of two on one store exactly one looks for due rules; when it ends, the other does."""
    clock = Clock()
    async with (
        _syncing(registry, tmp_path / "store", clock=clock) as one,
        _syncing(registry, tmp_path / "store", clock=clock) as other,
    ):
        await _tick(one)
        clock.forward(301)
        looks = [_counted(mirror.app) for mirror in (one, other)]
        loops = [asyncio.create_task(mirror.app.scheduler.run()) for mirror in (one, other)]
        await until(lambda: len(_ended(one, other)) == 1)
        clock.forward(_EVERY)
        await until(lambda: len(_ended(one, other)) == 2)
        assert registry.count("tags") == 2
        [holder] = [number for number, counted in enumerate(looks) if counted]
        await cancel_and_wait(loops[holder])
        clock.forward(_EVERY)
        await until(lambda: len(_ended(one, other)) == 3)
        assert looks[1 - holder]
        await cancel_and_wait(*loops)


def _counted(app: App) -> list[float]:
    """When its loop looks for what is due, from now on; it does so without waiting in between."""
    looks: list[float] = []
    tick = app.scheduler.tick

    async def counted() -> None:
        looks.append(app.sync.now())
        await tick()

    app.scheduler.tick = counted  # type: ignore[method-assign]
    app.scheduler._sleep = lambda _: asyncio.sleep(0.01)
    return looks


def _ended(one: LiveMirror, other: LiveMirror) -> set[str]:
    """The runs that ended; both mirrors are in one process, so a line may stand in either log."""
    return {json.dumps(line) for mirror in (one, other) for line in mirror.events("sync ended")}


# ------------------------------------------------------------------------------------------------- said by users


def _configured(tmp_path: Path, registry: FakeRegistry, text: str) -> Path:
    return write_config(tmp_path, {"docker.io": registry.url}, workers=1, more=text)


def test_mistakes_in_rules_are_named(registry: FakeRegistry, tmp_path: Path) -> None:
    """All at once, each with its rule."""
    text = """
    [[sync]]
    from = "docker.io/library/app:1.0"
    every = "6h"
    [[sync]]
    from = "nope.example/app"
    every = "6h"
    [[sync]]
    from = "app"
    cron = "0 3 * * *"
    [[sync]]
    from = "app"
    cron = "0 3 * * *"
    [admin]
    listen = "unix:/tmp/admin.sock"
    """
    with pytest.raises(ConfigError) as caught:
        load(_configured(tmp_path, registry, text))
    assert caught.value.mistakes == (
        "sync[1].from: must be a repository, without tag or digest: 'docker.io/library/app:1.0'",
        "sync[2].from: nope.example/app: the registry nope.example is not configured in this mirror",
        "sync[4]: app is already the name of sync[3]; set name",
    )


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('from = "app"', "needs either every or cron"),
        ('from = "app"\nevery = "6h"\ncron = "0 3 * * *"', "needs either every or cron"),
        ('from = "app"\nevery = "10s"', "must be 1m or more"),
        ('from = "app"\nevery = "6h"\ntimezone = "Europe/Berlin"', "timezone is for cron only"),
        ('from = "app"\ncron = "0 3 * *"', "not a cron expression"),
        ('from = "app"\ncron = "0 3 * * *"\ntimezone = "Mars"', "unknown time zone"),
        ('from = "app"\nevery = "6h"\ntags = "1*"\ntags_regex = "1.*"', "exclude each other"),
        ('from = "app"\nevery = "6h"\ntags_regex = "("', "not a regular expression"),
        ('from = "app"\nevery = "6h"\ntags_semver = "latest"', "not a version range"),
        ('from = "app"\nevery = "6h"\nplatforms = ["amd64"]', "not a platform"),
        ('from = "app"\nevery = "6h"\nnewest = 0', "must be 1 or more"),
        ('from = "app"\nevery = "6h"\nname = "a b"', "name has 1 to 100"),
        ('every = "6h"', "must be set"),
        ('from = "app"\nevery = "6h"\n[admin]\nlisten = "0.0.0.0:5001"', "is not a loopback address"),
        ('from = "app"\nevery = "6h"\n[admin]\nlisten = "mirror.example:5001"', "is not a loopback address"),
        ('from = "app"\nevery = "6h"\n[admin]\nlisten = "unix:admin.sock"', "must be absolute"),
    ],
)
def test_a_mistake_in_a_rule(registry: FakeRegistry, tmp_path: Path, lines: str, message: str) -> None:
    """`mirror check` says what is wrong."""
    done = _mirror("check", config=_configured(tmp_path, registry, f"[[sync]]\n{lines}"))
    assert done.status == 2
    assert message in done.err


def test_a_manual_sync(registry: FakeRegistry, tmp_path: Path) -> None:
    """`mirror sync` lists the rules, `--now` runs one without a server; its failures make the command fail."""
    text = """
    [[sync]]
    name = "releases"
    from = "docker.io/library/app"
    tags_semver = ">=1"
    every = "6h"
    [[sync]]
    name = "nothing"
    from = "docker.io/library/none"
    cron = "0 3 * * *"
    """
    config = _configured(tmp_path, registry, text)
    listed = json.loads(_mirror("sync", "--json", config=config).out)
    assert [(rule["name"], rule["state"]) for rule in listed] == [("releases", "never ran"), ("nothing", "never ran")]
    done = _mirror("sync", "--now", "releases", config=config)
    assert (done.status, done.err) == (0, "")
    assert "2 tags, 2 new" in done.out
    assert "new: docker.io/library/app:1.1" in done.out
    again = _mirror("sync", "--now", "releases", "--json", config=config)
    assert json.loads(again.out) | {"ok": True, "tags": 2, "new_images": 0, "bytes": 0} == json.loads(again.out)
    failed = _mirror("sync", "--now", "nothing", config=config)
    assert failed.status == 1
    assert "its tags" in failed.out
    assert _mirror("sync", "--now", "nope", config=config).status == 2
    table = _mirror("sync", config=config).out
    assert "2 tags, 0 new" in table
    assert "failed" in table


def _mirror(*arguments: str, config: Path) -> Done:
    return command(*arguments, "--config", config)
