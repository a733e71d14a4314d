"""Opens what reports events: the announcer of changes, the log of other events, and the deliveries to endpoints."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mirror import __version__, telemetry
from mirror.aio.closing import close_all
from mirror.aio.threads import uninterrupted
from mirror.app.storage import Storage
from mirror.config import Config
from mirror.errors import StoreError
from mirror.events.announcing import OutboxAnnouncer
from mirror.events.deliveries import EventDeliveries
from mirror.events.endpoint_queue import Delivery
from mirror.events.event_log import EventLog
from mirror.events.seen_changes import look
from mirror.policy.events.noticed import event_of
from mirror.policy.events.subscriptions import Subscription, Subscriptions
from mirror.ports import SILENCE, Announcer
from mirror.store.local.locks import RunLock
from mirror.upstream.http.event_posts import EventAddress, EventPosts
from mirror.upstream.http.proxies import DIRECT, Proxies

if TYPE_CHECKING:
    from mirror.events.adoption import EventAdoption


def subscriptions(config: Config) -> Subscriptions:
    """What each endpoint is informed of."""
    return Subscriptions(
        tuple(Subscription(each.name, tuple(each.events), tuple(each.repositories)) for each in config.events.endpoint)
    )


def open_announcer(config: Config, storage: Storage) -> Announcer:
    """What reports changes of hosted repositories; to nobody if there is no endpoint."""
    outbox = storage.hosted.outbox
    if outbox is None:
        return SILENCE
    catalog, records = storage.hosted.strict.catalog, storage.hosted.records
    return OutboxAnnouncer(
        outbox,
        subscriptions(config),
        lambda change, written: look(catalog, records, change, written),
        config.events.source,
        time.time,
    )


class Reports:
    """What a server does about events. `log` notes those that report no change of a hosted repository."""

    def __init__(self, log: EventLog, deliveries: EventDeliveries, adoption: EventAdoption | None = None) -> None:
        """`adoption` takes the events of other replicas that are gone; None if there are none."""
        self.log = log
        self.deliveries = deliveries
        self.adoption = adoption

    def __repr__(self) -> str:
        return f"<Reports {self.deliveries!r}>"

    async def run(self) -> None:
        """Notes, delivers and adopts until it is cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.log.run())
            tasks.create_task(self.deliveries.run())
            if self.adoption is not None:
                tasks.create_task(self.adoption.run())


@asynccontextmanager
async def open_reports(
    config: Config, storage: Storage, announcer: Announcer, now: Callable[[], float]
) -> AsyncIterator[Reports | None]:
    """What notes and delivers events; None if there is no endpoint. At the end, what was noted is written down."""
    outbox = storage.hosted.outbox
    if outbox is None or not isinstance(announcer, OutboxAnnouncer):
        yield None
        return
    settings = config.events
    log = EventLog(outbox, subscriptions(config), settings.source, now)
    sender = open_sender(config)
    delivery = Delivery(outbox, sender, settings.source, settings.keep, now, random.random, secrets_of(config))
    deliveries = EventDeliveries([each.name for each in settings.endpoint], announcer, delivery, storage.locks)
    outbox.wake(deliveries.wake)
    adoption, run = _open_adoption(storage, announcer)
    end = telemetry.listen(_Listener(log, settings.sample_pulls))
    try:
        yield Reports(log, deliveries, adoption)
    finally:
        end()
        # first what was noted: nothing waits for it, and it would be lost
        await close_all(
            lambda: uninterrupted(asyncio.to_thread(_flush, log)),
            *(
                ()
                if adoption is None or run is None
                else (lambda: uninterrupted(asyncio.to_thread(_hand_over, adoption, run)),)
            ),
            sender.aclose,
        )


def _flush(log: EventLog) -> None:
    """Blocking."""
    try:
        log.flush()
    except StoreError as error:
        telemetry.log.warning("events not written", reason=str(error))


def _open_adoption(storage: Storage, announcer: OutboxAnnouncer) -> tuple[EventAdoption | None, RunLock | None]:
    """What adopts the events of replicas that are gone, and the lock of all processes of this one; None without other
    replicas.
    """
    if storage.leasing is None or storage.bucket is None:
        return None, None
    # imported here, so that it is loaded by replicas alone
    from mirror.app.object_storage.leasing import ADOPTION
    from mirror.events.adoption import EventAdoption
    from mirror.events.bucket_outbox import BucketOutbox

    if not isinstance(announcer.outbox, BucketOutbox):
        return None, None
    adoption = EventAdoption(announcer.outbox, announcer, storage.bucket.bucket, storage.work, lease=ADOPTION)
    return adoption, RunLock(storage.layout, "event-run")


def _hand_over(adoption: EventAdoption, run: RunLock) -> None:
    """Blocking: the last process of a replica that ends leaves what waits to the others."""
    with suppress(StoreError):
        if run.is_last():
            adoption.end()
    run.close()


class _Listener:
    """Notes what other parts of the mirror notice; of pulls, one of so many."""

    def __init__(self, log: EventLog, sample_pulls: int) -> None:
        self._log = log
        self._sample_pulls = sample_pulls

    def __repr__(self) -> str:
        return f"<_Listener 1 of {self._sample_pulls} pulls>"

    def __call__(self, what: telemetry.Notice, fields: Mapping[str, Any]) -> None:
        if what is telemetry.Notice.IMAGE_PULLED and random.randrange(self._sample_pulls):  # noqa: S311 - a sample
            return
        event = event_of(what.value, fields)
        if event is not None:
            self._log.note(event)


def open_sender(config: Config) -> EventPosts:
    """What sends events. The caller closes it."""
    addresses = {
        each.name: EventAddress(
            each.url.get_secret_value() if each.url else "",
            each.timeout,
            each.ca_file,
            Proxies.given(each.proxy.get_secret_value()) if each.proxy else DIRECT,
        )
        for each in config.events.endpoint
    }
    return EventPosts(addresses, f"registry-mirror/{__version__}")


def secrets_of(config: Config) -> Callable[[str], Sequence[bytes]]:
    """Reads the secrets that sign what is sent to an endpoint, each time anew. Raises `OSError`."""
    files = {each.name: each.secret_file for each in config.events.endpoint}

    def read(endpoint: str) -> Sequence[bytes]:
        file: Path | None = files[endpoint]
        if file is None:
            return []
        secrets = [line.strip() for line in file.read_bytes().splitlines() if line.strip()]
        if not secrets:
            # nothing is sent without a signature to an endpoint that expects one
            raise FileNotFoundError(f"{file} is empty")
        return secrets

    return read
