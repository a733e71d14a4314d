"""Keeps what this replica remembers of the bucket near to what other replicas change, also while no client asks.

    every 2 s     the journal of pins, freezes and robots
                  then what others have changed, of the records that were read here before
    every 10 s    all journals that have changed; what the repositories of these have, for their quotas
    a notice      at once

Pulls and pushes do not rely on it: they look themselves. Lists that are shown, eviction, and cached content do; so do
pulls while the bucket is down, which then find what the others had changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from mirror.aio.bounded_threads import in_thread
from mirror.app.clustering import Cluster
from mirror.app.storage import Storage, quota_rules
from mirror.app.stored_records import BucketUse
from mirror.config import Config
from mirror.errors import BucketUnavailable, IndexUnavailable, StoreError
from mirror.hosting.ledger_catch_up import LedgerCatchUp
from mirror.hosting.ledger_upkeep import LedgerUpkeep
from mirror.oci.reference import Repo
from mirror.policy.cluster.journal_names import OPERATED, OPERATORS, of_kind, of_repo, repo_path
from mirror.ports import Notice, Version
from mirror.rounds import KeptLock, run_rounds
from mirror.store.records.record_keys import repo_from

#: Seconds between two looks, and how many of them there are for each look at all journals.
_EVERY: Final = 2.0
_LOOKS: Final = 5
#: Records that are read again after a look, and seconds after which no more are: the next look must not wait long.
_READ_AGAIN: Final = 100
_READING: Final = 1.0
_LOCK: Final = "journals"


def catches_up(use: BucketUse) -> Callable[[], Awaitable[None]]:
    """What is awaited before all repositories are listed. While the bucket does not answer, they are those that are
    remembered. However many ask, pulls have all threads but one.
    """
    turn = asyncio.Lock()
    waiting: asyncio.Task[None] | None = None

    async def catch_up_next() -> None:
        nonlocal waiting
        async with turn:
            # whoever asks from here on gets another one, which begins later
            waiting = None
            try:
                await in_thread(use.threads.looks, use.tree.catch_up)
                if use.journals is not None:
                    use.journals.following.goes_on()
            except BucketUnavailable as error:
                if use.journals is not None:
                    use.journals.following.failed(error)

    async def catch_up() -> None:
        nonlocal waiting
        if waiting is None:
            waiting = asyncio.get_running_loop().create_task(catch_up_next())
        await asyncio.shield(waiting)

    return catch_up


def exchange_changes(use: BucketUse, cluster: Cluster) -> None:
    """Lets other replicas know of changes that are made here, and looks at the journals that they name."""
    journals = use.journals
    if journals is None:
        return
    informs_of_repositories = journals.freshness > 0

    def announce(name: str) -> None:
        repo = _repo(name)
        if repo is not None and informs_of_repositories:
            cluster.notices.hint(Notice(repositories=(repo,)))
        elif name == OPERATORS:
            cluster.notices.hint(Notice(kinds=OPERATED))

    async def effect(notice: Notice) -> None:
        await in_thread(use.threads.looks, journals.doubt, notice.repositories, notice.kinds)
        for name in sorted({*map(of_repo, notice.repositories), *map(of_kind, notice.kinds)}):
            await in_thread(use.threads.looks, partial(journals.look, name, patient=False))

    journals.announce = announce
    cluster.effects.add(effect)


async def follow_journals(config: Config, storage: Storage) -> None:
    """Follows the journals for as long as the server runs. One process of the replica does so at a time."""
    use = storage.bucket
    if use is None or use.journals is None:
        return
    upkeep = _upkeep(config, storage)
    journals, following = use.journals, use.journals.following
    followed, looks = _FollowedRepositories(use, upkeep), 0

    async def look() -> None:
        nonlocal looks
        try:
            if await lock.taken() and use.owner.is_confirmed:
                await in_thread(use.threads.looks, partial(journals.look, OPERATORS, _EVERY / 2, patient=False))
                if looks % _LOOKS == 0:
                    await followed.follow()
                    following.goes_on()
                looks += 1
                await asyncio.to_thread(use.tree.read_doubted, _READ_AGAIN, _READING)
        except (StoreError, IndexUnavailable) as error:
            following.failed(error)
            # that it goes on is certain once all journals were looked at
            looks = 0

    with KeptLock(partial(storage.locks.try_hold, _LOCK)) as lock:
        await run_rounds(look, _EVERY, crashed="following of journals crashed")


def catches_up_quotas(config: Config, storage: Storage, use: BucketUse) -> LedgerCatchUp:
    """What lets the ledger have what other replicas have changed, before a quota refuses a push."""

    def versions() -> dict[Repo, Version | None]:
        found = {_repo(name): version for name, version in _versions(use).items()}
        return {repo: version for repo, version in found.items() if repo is not None}

    return LedgerCatchUp(versions, _upkeep(config, storage).correct_now, quota_rules(config).scopes)


def _upkeep(config: Config, storage: Storage) -> LedgerUpkeep:
    return LedgerUpkeep(
        storage.hosted.ledger,
        storage.hosted.records,
        storage.hosted.strict.catalog,
        [entry.name for entry in config.hosted],
    )


class _FollowedRepositories:
    """The repositories whose changes the ledger has, by the versions of their journals."""

    def __init__(self, use: BucketUse, upkeep: LedgerUpkeep) -> None:
        self._use = use
        self._upkeep = upkeep
        self._seen: dict[str, Version | None] | None = None

    def __repr__(self) -> str:
        return f"<_FollowedRepositories {len(self._seen or ())}>"

    async def follow(self) -> None:
        """Look at all journals that have changed. Raises `StoreError`, `IndexUnavailable`."""
        now = await in_thread(self._use.threads.looks, partial(_versions, self._use))
        # the ledger is completed at each start
        before = now if self._seen is None else self._seen
        for name, version in now.items():
            repo = _repo(name)
            if repo is not None and before.get(name) != version:
                await self._upkeep.correct(repo)
        self._seen = now


def _versions(use: BucketUse) -> dict[str, Version | None]:
    """Blocking: the versions of all journals, once the memory has what they say."""
    journals, found = use.journals, {}
    for name in use.tree.catch_up():
        position = journals.position(name) if journals is not None else None
        found[name] = position.version if position is not None else None
    return found


def _repo(name: str) -> Repo | None:
    path = repo_path(name)
    return repo_from(path) if path else None
