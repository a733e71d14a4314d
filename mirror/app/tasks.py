"""Jobs, as all processes of one store see them."""

from __future__ import annotations

from collections.abc import Mapping

from mirror.app.storage import Storage
from mirror.prefetch.jobs import Jobs, Work
from mirror.store.local.records import JsonRecords

__all__ = ["make_jobs"]


def make_jobs(storage: Storage, work: Mapping[str, Work] | None = None) -> Jobs:
    """`work` is what a process that runs jobs can do; without it they can be told and cancelled."""
    jobs, queue, cancels = (JsonRecords(storage.layout, kind) for kind in ("jobs", "job-queue", "job-cancels"))
    return Jobs(jobs, queue, cancels, hold=storage.locks.try_hold, alone=storage.locks.named, work=work or {})
