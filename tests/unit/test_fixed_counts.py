"""Adopted servers that refuse changes of their models are planned without that lever."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

from tests.unit.fakes import Bench
from tests.unit.samples import CLASSIFIER, DETECTOR, config, server
from themis_triton.core.fleet import Phase
from themis_triton.daemon.components import Components
from themis_triton.daemon.fixed_counts import find_fixed, fixed_actuators, with_fixed_counts

REASON = "server a runs without explicit model control. Fix: start it with --model-control-mode=explicit"


def components(bench: Bench) -> Components:
    return cast("Components", SimpleNamespace(world=bench.world, control=bench.control))


def test_adopted_servers_that_refuse_changes_are_found_and_others_left() -> None:
    own = server("own", launched=True)
    away = replace(server("away", launched=False), phase=Phase.UNREACHABLE)
    bench = Bench(server("a", launched=False), server("b", launched=False), own, away, server("silent", launched=False))
    bench.control.unchangeable = dict.fromkeys(("a", "own", "away"), REASON)
    bench.control.silent.add("silent")
    assert asyncio.run(find_fixed(components(bench))) == {"a": REASON}


def test_their_actuators_rest_for_ever_with_the_reason() -> None:
    bench = Bench(server("a", launched=False), server("b", launched=False))
    bench.executor.unchangeable = fixed_actuators({"a": REASON}, bench.fleet.all())
    resting: dict[str, Any] = {f"a/{DETECTOR}": REASON, f"a/{CLASSIFIER}": REASON}
    assert bench.executor.resting == resting
    assert bench.executor.backing_off(5.0).keys() == resting.keys()


def test_the_counts_that_they_run_are_the_bounds_of_their_models() -> None:
    servers = [server("a", (3, 1), launched=False), server("b", (2, 1), launched=False), server("c", (1, 6), launched=False)]
    before = config()
    after = with_fixed_counts(before, {"a": REASON, "b": REASON}, servers)
    bounds = {name: (model.min_instances, model.max_instances) for name, model in after.models.items()}
    assert bounds[DETECTOR] == (2, 3)
    assert bounds[CLASSIFIER] == (1, 1)
    assert with_fixed_counts(before, {}, servers) == before
