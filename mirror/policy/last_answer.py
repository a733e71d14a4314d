"""The last answer that a client got for a tag, manifest, blob or list, and what it means in words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from mirror.oci.request import Kind
from mirror.policy.history import TagOverride
from mirror.values.json_form import JsonForm, Moment

#: The most characters of `LastAnswer.error`.
LONGEST: Final = 300


@dataclass(frozen=True, slots=True)
class LastAnswer:
    """One answer to a client.

    `kind` is the kind of resource; `reference` is a tag or digest, empty for lists. `at` is when the answer ended, in
    epoch seconds, `seconds` how long it took, `sent` the bytes of its body. `outcome` is the one in the metrics.
    `digest` is the digest that a tag was answered with, `tag_override` the reason if it is not upstream's. `error` says
    what went wrong. `request` is the request's number in the log and in error answers.
    """

    at: Moment
    status: int
    sent: int
    seconds: Moment
    repository: str = ""
    kind: str = ""
    reference: str = ""
    method: str = ""
    outcome: str = ""
    upstream: str = ""
    digest: str = ""
    tag_override: str = ""
    error: str = ""
    request: str = ""

    def to_json(self) -> dict[str, Any]:
        """The form that is kept on disk, without empty fields."""
        return _FORM.to_json(self)

    @classmethod
    def from_json(cls, body: object) -> LastAnswer | None:
        """Read it back; None if it cannot be parsed."""
        return _FORM.from_json(body)


_FORM: Final = JsonForm(LastAnswer, sparse=True)


def latest(answers: Iterable[LastAnswer]) -> list[LastAnswer]:
    """The last answer for each resource and method, newest first.

    Methods are kept apart because clients ask by HEAD before they ask by GET.
    """
    last: dict[tuple[str, str, str, str], LastAnswer] = {}
    for answer in answers:
        key = (answer.repository, answer.kind, answer.reference, answer.method)
        if key not in last or last[key].at < answer.at:
            last[key] = answer
    return sorted(last.values(), key=lambda answer: -answer.at)


_OVERRIDES: Final = {
    TagOverride.FROZEN.value: "the tag is frozen: it answers this digest whatever upstream says",
    TagOverride.TOO_NEW.value: "upstream has a newer digest, which the route's minimum_age holds back",
}

_TAG: Final = {
    "hit": "the tag's answer was fresh enough to be believed without asking upstream, and the manifest was here",
    "miss": "the tag was not known here or had moved, or its manifest was not here: {upstream} was asked",
    "revalidated": "the tag's answer was too old to be believed; {upstream} was asked and confirmed it",
    "bypass": "the tag's manifest was not here and came from {upstream}; the store could not take it (full, broken)",
    "stale": "the tag's answer was too old, and {upstream} gave none in time or at all: the last known one was given",
}
_MANIFEST: Final = {
    "hit": "the manifest was here; what a digest names never changes, so upstream was not asked",
    "miss": "the manifest was not here and came from {upstream}",
    "bypass": "the manifest was not here and came from {upstream}; the store could not take it (full, broken)",
    "described": "the manifest is not here, but an index that is says its type and size; {upstream} was not asked",
    "asked": "the manifest is not here, and no index that is names it: {upstream} was asked for its type and size",
}
_BLOB: Final = {
    "hit": "the blob was here; what a digest names never changes, so upstream was not asked",
    "miss": "the blob was not here and came from {upstream}; it was stored on its way",
    "described": "the blob is not here, but its size is known; {upstream} was not asked",
    "asked": "the blob is not here: {upstream} was asked for its size",
    "joined": "the blob was not here, but on its way for another client: this one followed the same download",
    "bypass": "the store could not take the blob (full, broken, or the blob too large): it went through uncached",
    "redirected": "the client is in a network of `redirect_to`, and was sent to the bucket for the bytes",
}
_LIST: Final = {
    "none": "lists come from {upstream}, at most a minute old; they are not cached beyond that",
    "stale": "{upstream} did not answer: the list is of what was pulled through this mirror",
}


#: Of a hosted repository, by method.
_HOSTED: Final = {
    "GET": "it is hosted here, and was served from the disk",
    "HEAD": "it is hosted here, and was served from the disk",
    "DELETE": "a client has deleted it",
}
_PUSHED: Final = "a client has pushed it"
#: The same of content that is in a bucket, by how it was answered.
_FROM_BUCKET: Final = {
    "miss": "it is hosted here, and came from the bucket, because the disk had no copy",
    "joined": "it is hosted here, and came from the bucket, on its way for another client already",
    "bypass": "it is hosted here, and came from the bucket past the disk, which could not take a copy",
    "described": "it is hosted here, in the bucket; the disk has no copy",
    "redirected": _BLOB["redirected"],
    "last-seen": "it is hosted here, and the bucket did not answer: this is what this replica saw there last",
}


def explain(answer: LastAnswer, *, hosted: bool = False) -> str:
    """One sentence that explains the answer. `hosted`: its repository is hosted here."""
    if answer.status == 499:
        return "the client went away, or the mirror was stopping, before there was an answer"
    if answer.status >= 400:
        return _refusal(answer)
    if hosted:
        text = _FROM_BUCKET.get(answer.outcome) or _HOSTED.get(answer.method, _PUSHED)
        return f"{text}; then: {answer.error}" if answer.error else text
    if answer.tag_override in _OVERRIDES:
        return _OVERRIDES[answer.tag_override]
    digest = ":" in answer.reference
    texts = {
        Kind.MANIFEST.value: _MANIFEST if digest else _TAG,
        Kind.BLOB.value: _BLOB,
    }.get(answer.kind, _LIST)
    text = texts.get(answer.outcome, "the answer was made without cache or upstream")
    text = text.format(upstream=answer.upstream or "upstream")
    return f"{text}; then: {answer.error}" if answer.error else text


def _refusal(answer: LastAnswer) -> str:
    kind = "refused" if answer.status in (401, 403, 429) else "not found" if answer.status == 404 else "an error"
    return f"{kind}: {answer.error or f'status {answer.status}'}"
