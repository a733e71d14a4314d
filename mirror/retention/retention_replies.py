"""The JSON forms of rounds of retention, and of plans, for the command line and the admin API."""

from __future__ import annotations

from typing import Annotated

from typing_extensions import TypedDict

from mirror.collection.collection_replies import UnreadJson, unread_json
from mirror.policy.hosted.retention import RetentionVerdict
from mirror.retention.repository_retention import RepositoryPlan
from mirror.retention.retention_report import RetentionReport
from mirror.values.json_types import Count, Timestamp, about
from mirror.values.timestamps import format_moment, moment


class RetentionRoundJson(TypedDict):
    """One round of retention."""

    begun: Timestamp
    ended: Annotated[Timestamp | None, about("Null: it runs, or was interrupted and will go on.")]
    by: Annotated[str, about("Who asked for it; `schedule`: nobody.")]
    complete: Annotated[bool, about("Every repository with rules was judged.")]
    resumed: Annotated[Count, about("How often it went on after an interruption.")]
    repositories: Count
    tags: Annotated[Count, about("Tags that were deleted.")]
    manifests: Annotated[Count, about("Manifests that were deleted.")]
    stayed: Annotated[Count, about("What was to go and stays, because a client has changed it meanwhile.")]
    unread_count: Annotated[Count, about("Repositories that could not be read, and lose nothing.")]
    unread: Annotated[list[UnreadJson], about("The first of these.")]


class RetentionJson(TypedDict):
    """Retention of hosted images."""

    last: Annotated[RetentionRoundJson | None, about("Null: there was no round yet.")]
    next: Annotated[Timestamp | None, about("When the next round is due; null: there are no rules, or no schedule.")]


class JudgedJson(TypedDict):
    """A tag or manifest that a plan judges."""

    name: Annotated[str, about("The tag, or the digest of the manifest.")]
    digest: str
    goes: bool
    reason: Annotated[str, about("The rule that deletes or keeps it, or what else does.")]


class RepositoryPlanJson(TypedDict):
    """What a round would do with a repository."""

    repository: str
    unread: Annotated[str | None, about("What cannot be read, so that nothing goes.")]
    tags: Annotated[list[JudgedJson], about("What goes comes first.")]
    manifests: list[JudgedJson]
    more: Annotated[Count, about("Tags and manifests that are not listed.")]


class RetentionPlanJson(TypedDict):
    """What a round would do."""

    repositories: list[RepositoryPlanJson]


def retention_round_json(report: RetentionReport) -> RetentionRoundJson:
    """The form of a round."""
    return {
        "begun": format_moment(report.begun_at),
        "ended": moment(report.ended_at),
        "by": report.by,
        "complete": report.complete,
        "resumed": report.resumed,
        "repositories": report.repositories,
        "tags": report.tags,
        "manifests": report.manifests,
        "stayed": report.stayed,
        "unread_count": report.unread_count,
        "unread": [unread_json(each) for each in report.unread],
    }


def repository_plan_json(plan: RepositoryPlan, most: int | None = None) -> RepositoryPlanJson:
    """The form of a plan of one repository, with at most so many tags, and so many manifests."""
    digests = {tag.name: str(tag.digest) for tag in plan.facts.tags}
    tags = [_judged(name, digests[name], verdict) for name, verdict in sorted(plan.verdicts.tags.items())]
    manifests = [_judged(str(each), str(each), verdict) for each, verdict in sorted(plan.verdicts.manifests.items())]
    tags.sort(key=_stays)
    manifests.sort(key=_stays)
    listed_tags, listed_manifests = tags[:most], manifests[:most]
    return {
        "repository": str(plan.repo),
        "unread": plan.facts.unread or None,
        "tags": listed_tags,
        "manifests": listed_manifests,
        "more": len(tags) + len(manifests) - len(listed_tags) - len(listed_manifests),
    }


def _stays(judged: JudgedJson) -> bool:
    return not judged["goes"]


def _judged(name: str, digest: str, verdict: RetentionVerdict) -> JudgedJson:
    return {"name": name, "digest": digest, "goes": verdict.goes, "reason": verdict.reason}
