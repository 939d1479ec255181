"""Actuators that lose requests, or were never probed, are not pulled."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.samples import DETECTOR, snapshot
from tests.unit.samples import config as make_config
from tests.unit.samples import server as make_server
from themis_triton.core.config import ThemisConfig
from themis_triton.core.decision import ClampKind, Target
from themis_triton.core.fleet import ModelState
from themis_triton.decide.guards import guard, only_probed_operations

NOW = ModelState(2, 4)
SAFE = {"add_one": True, "remove_one": True, "add_many": True, "rebatch": True}


def configured(operations: dict[str, bool], *, proven_only: bool) -> ThemisConfig:
    config = make_config()
    model = config.models[DETECTOR]
    changed = replace(model, profile=replace(model.profile, operations=operations), require_probed_operations=proven_only)
    return replace(config, models=config.models | {DETECTOR: changed})


def guarded(desired: ModelState, operations: dict[str, bool], *, proven_only: bool) -> tuple[ModelState, list[str]]:
    server = replace(make_server("a"), models={DETECTOR: NOW})
    target = Target(servers={"a": {DETECTOR: desired}})
    result, clamps = only_probed_operations(target, snapshot([server]), configured(operations, proven_only=proven_only))
    assert all(clamp.kind is ClampKind.OPERATION for clamp in clamps)
    return result.servers["a"][DETECTOR], [clamp.sentence for clamp in clamps]


@pytest.mark.parametrize("desired", [ModelState(3, 4), ModelState(1, 4), ModelState(6, 4), ModelState(2, 8), NOW])
@pytest.mark.parametrize(("operations", "proven_only"), [({}, False), (SAFE, True), (SAFE, False)])
def test_what_is_trusted_or_proven_is_done(desired: ModelState, operations: dict[str, bool], proven_only: bool) -> None:
    assert guarded(desired, operations, proven_only=proven_only) == (desired, [])


@pytest.mark.parametrize(("desired", "actuator"), [(ModelState(3, 4), "add_one"), (ModelState(1, 4), "remove_one")])
def test_what_loses_requests_is_never_done_and_says_so(desired: ModelState, actuator: str) -> None:
    kept, message = guarded(desired, SAFE | {actuator: False}, proven_only=False)
    assert kept == NOW
    assert message == [f"{DETECTOR} on a: {actuator} loses requests, as probed; unchanged"]


@pytest.mark.parametrize("count", [2, 3])
def test_counts_still_change_where_only_the_batching_is_refused(count: int) -> None:
    kept, message = guarded(ModelState(count, 8), SAFE | {"rebatch": False}, proven_only=False)
    assert kept == ModelState(count, 4)
    assert message == [f"{DETECTOR} on a: rebatch loses requests, as probed; batching is unchanged"]


def test_what_was_not_probed_waits_where_proof_is_asked_for() -> None:
    kept, message = guarded(ModelState(1, 4), {"add_one": True}, proven_only=True)
    assert kept == NOW
    assert message == [f"{DETECTOR} on a: remove_one was not probed: run `themis probe`; unchanged"]


def test_many_at_once_become_one_at_a_time_where_that_is_proven() -> None:
    kept, message = guarded(ModelState(6, 4), {"add_one": True}, proven_only=True)
    assert kept == ModelState(3, 4)
    assert message[0].endswith("one instance at a time instead")


def test_the_guards_in_sequence_keep_to_what_was_probed() -> None:
    server = replace(make_server("a"), models={DETECTOR: NOW})
    target = Target(servers={"a": {DETECTOR: ModelState(1, 4)}})
    kept, clamps = guard(target, snapshot([server]), configured(SAFE | {"remove_one": False}, proven_only=False))
    assert kept.servers["a"][DETECTOR] == NOW
    assert [clamp.kind for clamp in clamps] == [ClampKind.OPERATION]
