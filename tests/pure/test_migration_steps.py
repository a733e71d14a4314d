"""What a migration does with one record."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.policy.hosted.migration_steps import DELETED, MigrationStep, Written, migration_step

_VERSION = st.sampled_from(["a", "b", "c"])
_STATE = st.none() | _VERSION
_WRITTEN = st.builds(Written, _STATE, _STATE | st.just(DELETED))


@pytest.mark.parametrize(
    ("source", "target", "written", "step"),
    [
        (None, None, Written(), MigrationStep.FORGET),
        ("a", "a", Written(), MigrationStep.SAME),
        ("a", None, Written(), MigrationStep.WRITE),
        ("a", None, Written("a"), MigrationStep.DELETED_THERE),
        ("a", None, Written("b"), MigrationStep.DELETED_THERE),
        ("a", None, Written(None, "b"), MigrationStep.WRITE),
        ("a", None, Written("b", DELETED), MigrationStep.WRITE),
        ("b", "a", Written("a"), MigrationStep.WRITE),
        ("c", "b", Written("a", "b"), MigrationStep.WRITE),
        ("c", "a", Written("a", "b"), MigrationStep.WRITE),
        ("b", "a", Written(), MigrationStep.CHANGED_THERE),
        ("b", "a", Written("b"), MigrationStep.CHANGED_THERE),
        (None, "a", Written("a"), MigrationStep.DELETE),
        (None, "a", Written(None, "a"), MigrationStep.DELETE),
        (None, "a", Written("a", DELETED), MigrationStep.DELETE),
        (None, "a", Written(), MigrationStep.ONLY_THERE),
        (None, "b", Written("a"), MigrationStep.ONLY_THERE),
    ],
)
def test_each_case(source: str | None, target: str | None, written: Written, step: MigrationStep) -> None:
    assert migration_step(source, target, written) is step


@given(_STATE, _STATE, _WRITTEN)
def test_it_does_not_touch_what_it_never_wrote(source: str | None, target: str | None, written: Written) -> None:
    step = migration_step(source, target, written)
    if step in (MigrationStep.WRITE, MigrationStep.DELETE) and target is not None:
        assert target in (written.version, written.next)


@given(_STATE, _STATE, _WRITTEN)
def test_afterwards_both_are_the_same_or_there_is_a_conflict(
    source: str | None, target: str | None, written: Written
) -> None:
    step = migration_step(source, target, written)
    after = {MigrationStep.WRITE: source, MigrationStep.DELETE: None}.get(step, target)
    assert step.is_conflict is (after != source)


@given(_STATE, _STATE, _WRITTEN)
def test_overwriting_knows_no_conflict(source: str | None, target: str | None, written: Written) -> None:
    assert not migration_step(source, target, written, overwrite=True).is_conflict
