"""Builds the jobs of a store, which all its processes share."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from mirror.app.storage import Storage
from mirror.prefetch.jobs import Jobs, Work


def make_jobs(
    storage: Storage, work: Mapping[str, Work] | None = None, *, now: Callable[[], float] = time.time
) -> Jobs:
    """The jobs of a store.

    `work` is the kinds of jobs that this process can run. Without it jobs can only be listed and cancelled.
    """
    jobs, queue, cancels = (storage.records(kind) for kind in ("jobs", "job-queue", "job-cancels"))
    return Jobs(jobs, queue, cancels, locks=storage.locks, work=work or {}, now=now)
