"""JSON that others wrote: what Python reads and nobody else does is refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.oci.manifest import ManifestMalformed, read_manifest
from mirror.oci.strict_json import FieldTwice, read_json

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(_VALUES)
def test_json_is_read(value: object) -> None:
    """Whatever can be written can be read, from text and from bytes."""
    text = json.dumps(value, allow_nan=False)
    assert read_json(text) == value
    assert read_json(text.encode()) == value
    assert read_json(bytearray(text.encode())) == value


@pytest.mark.parametrize(
    "text",
    ["NaN", "Infinity", "-Infinity", '{"a": [NaN]}', "1e999", "-1e999", "[" * 100_000, "1" * 5000, "\ufeff{}", "", "{"],
)
def test_what_is_no_json(text: str) -> None:
    """Always a `ValueError`, also where it is too deep or too long a number."""
    with pytest.raises(ValueError):  # noqa: PT011 - each is told in its own words
        read_json(text)
    with pytest.raises(ValueError):  # noqa: PT011 - each is told in its own words
        read_json(text.encode())


def test_other_encodings() -> None:
    """UTF-8 alone (RFC 8259, 8.1): a manifest in UTF-16 would be one to us and none to any client."""
    for encoding in ("utf-16", "utf-32", "utf-16-le"):
        with pytest.raises(ValueError):  # noqa: PT011 - each is told in its own words
            read_json('{"a": 1}'.encode(encoding))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_manifests(number: str) -> None:
    """A manifest with such a number in a field that nobody reads is none: Go's clients could not read it either."""
    text = f'{{"schemaVersion": 2, "manifests": [], "x": {number}}}'
    with pytest.raises(ManifestMalformed):
        read_manifest(text.encode(), "application/vnd.oci.image.index.v1+json")


@pytest.mark.parametrize("text", ['{"a": 1, "a": 1}', '[{"b": {"a": 1, "b": 2, "a": 3}}]'])
def test_a_field_twice(text: str) -> None:
    """Refused at any depth, if the caller says so."""
    assert read_json(text)
    with pytest.raises(FieldTwice):
        read_json(text, fields_once=True)
