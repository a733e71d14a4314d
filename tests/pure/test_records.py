"""What is remembered, and the form in which it is written down."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_MANIFEST
from mirror.policy.records import ManifestRecord, TagRecord

_DIGEST = Digest.of(b"")
_TAG = TagRecord("v1", _DIGEST, OCI_MANIFEST, 7, 1234.5)
_MANIFEST = ManifestRecord(_DIGEST, OCI_MANIFEST, 7, 1234.5)

_ODD = [b"", b"x", b"[]", b"null", b"1", b"{}", b'"x"', b"\xff", b"\0" * 100]


def test_read_back() -> None:
    """What is written is read back the same."""
    assert TagRecord.from_json("v1", _TAG.to_json()) == _TAG
    assert ManifestRecord.from_json(_DIGEST, _MANIFEST.to_json()) == _MANIFEST


def test_unknown_fields_are_ignored() -> None:
    """A later version may write more."""
    assert TagRecord.from_json("v1", json.dumps({**json.loads(_TAG.to_json()), "new": 1}).encode()) == _TAG
    more = json.dumps({**json.loads(_MANIFEST.to_json()), "new": 1}).encode()
    assert ManifestRecord.from_json(_DIGEST, more) == _MANIFEST


@pytest.mark.parametrize("kind", ["text/html", "", 7, None, "application/x\r\n"])
def test_80_a_type_that_no_manifest_has(kind: object) -> None:
    """Row 80: what an older version has written down of a page is no record, so that it is asked for again."""
    assert TagRecord.from_json("v1", json.dumps({**json.loads(_TAG.to_json()), "mediaType": kind}).encode()) is None
    changed = json.dumps({**json.loads(_MANIFEST.to_json()), "mediaType": kind}).encode()
    assert ManifestRecord.from_json(_DIGEST, changed) is None


@pytest.mark.parametrize("text", _ODD)
def test_54_junk_is_no_record(text: bytes) -> None:
    """Row 54: what does not parse is as good as nothing."""
    assert TagRecord.from_json("v1", text) is None
    assert ManifestRecord.from_json(_DIGEST, text) is None


@pytest.mark.parametrize("field", ["digest", "mediaType", "size", "fetchedAt"])
@pytest.mark.parametrize("value", [None, [], {}, "nonsense"])
def test_54_wrong_fields(field: str, value: object) -> None:
    """Row 54: nor is what lacks a field, or has it wrong. (A media type may be any text.)"""
    if field == "mediaType" and value is not None:
        return
    for record, read in (
        (_TAG, lambda text: TagRecord.from_json("v1", text)),
        (_MANIFEST, lambda text: ManifestRecord.from_json(_DIGEST, text)),
    ):
        body = json.loads(record.to_json())
        if field not in body:
            continue
        if value is None:
            del body[field]
        else:
            body[field] = value
        assert read(json.dumps(body).encode()) is None


@given(st.integers(0, 200))
def test_cut(length: int) -> None:
    """A file that was cut is no record, never half of one."""
    text = _TAG.to_json()
    cut = TagRecord.from_json("v1", text[:length])
    assert cut == (_TAG if length >= len(text) else None)
