"""A job: its record on disk, and the JSON that clients see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Any, Final, Literal, NotRequired, cast

from typing_extensions import TypedDict

from mirror.prefetch.progress import ProgressJson
from mirror.values.json_form import JsonForm
from mirror.values.json_types import Count, Timestamp, about
from mirror.values.timestamps import moment

#: How many images of each job a list of jobs names.
_IMAGES_IN_LIST: Final = 10


class JobState(Enum):
    """The state of a job; see the drawing in `jobs.py`."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"


class JobJson(TypedDict):
    """A job."""

    id: str
    kind: Annotated[str, about("`prefetch`, `sync` or `replicate`.")]
    arguments: Annotated[dict[str, Any], about("Of the request; in a list of jobs, the first images and `more`.")]
    state: Literal["queued", "running", "done", "failed", "cancelled", "interrupted"]
    created: Timestamp | None
    started: Timestamp | None
    ended: Timestamp | None
    worker: Annotated[NotRequired[Count], about("Process id of the worker that runs it, or did.")]
    cancelling: Annotated[NotRequired[bool], about("It was cancelled and is ending.")]
    progress: NotRequired[ProgressJson]
    result: Annotated[NotRequired[dict[str, Any]], about("Once it has ended: an `error`, or the outcome.")]


@dataclass(frozen=True, slots=True)
class Job:
    """A job. Times are in epoch seconds.

    `slot` is the number of the slot in which it runs, `worker` the process that runs it. An interrupted job has a slot
    if its own process said so, when it stopped. `cancelling`: a caller has
    cancelled it, and it has not ended yet. `progress` and `result` are JSON for people.
    """

    id: str
    kind: str
    state: JobState
    created: float = 0.0
    arguments: dict[str, Any] = field(default_factory=dict)
    started: float | None = None
    ended: float | None = None
    slot: int | None = None
    worker: int | None = None
    progress: ProgressJson | None = None
    result: dict[str, Any] | None = None
    cancelling: bool = False

    @property
    def is_over(self) -> bool:
        """True if the job will not run any more."""
        return self.state not in (JobState.QUEUED, JobState.RUNNING)

    @classmethod
    def from_record(cls, record: Mapping[str, Any] | None) -> Job | None:
        """The job of a record on disk; None if there is none, or if it is not valid: people may edit files."""
        return _JOB.from_json(record)

    def to_record(self) -> dict[str, Any]:
        """The job as JSON for the disk. Fields without a value are left out."""
        return _JOB.to_json(self)

    def to_json(self) -> JobJson:
        """The job as clients see it: times as text, without internal fields."""
        times = {name: moment(getattr(self, name)) for name in ("created", "started", "ended")}
        record = {name: value for name, value in self.to_record().items() if name != "slot"}
        return cast(JobJson, {**record, "arguments": self.arguments, **times})

    def summary(self) -> JobJson:
        """The job without long lists, as a list of jobs shows it."""
        summary = self.to_json()
        if isinstance(images := self.arguments.get("images"), list):
            listed = {"images": images[:_IMAGES_IN_LIST], "more": len(images[_IMAGES_IN_LIST:])}
            summary["arguments"] = {**self.arguments, **listed}
        if "progress" in summary:
            summary["progress"].pop("under_way", None)
        if "result" in summary:
            summary["result"] = {
                name: value for name, value in summary["result"].items() if not isinstance(value, list)
            }
        return summary


_JOB: Final = JsonForm(Job, sparse=True)
